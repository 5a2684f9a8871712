import asyncio
import ssl
from dataclasses import replace

import pytest
import trustme
from support.servers.origin import (
    Script,
    answer,
    by_path,
    in_turn,
    internet,
    plain_server,
    redirect,
    until,
)

from retouch.errors import (
    EditError,
    SourceConnectFailed,
    SourceRedirectError,
    SourceServerError,
    SourceStatusError,
)
from retouch.net.limits import FetchLimits

pytestmark = pytest.mark.integration

LIMITS = FetchLimits(max_bytes=1 << 20, connect_timeout_s=2)


async def test_the_request_has_the_host_and_only_the_documented_headers() -> None:
    async with internet({"a.example": answer(b"abc")}, limits=LIMITS) as (net, origins):
        fetched = await net.get("http://A.example/x?token=1#top", etag='"e"', last_modified="then")
    assert fetched.body == b"abc"
    line, *headers = origins["a.example"].requests[0].decode().strip().split("\r\n")
    assert line == "GET /x?token=1 HTTP/1.1"
    assert {header.split(":")[0] for header in headers} == {
        "Host", "User-Agent", "Accept", "Accept-Encoding", "Connection", "If-None-Match",
        "If-Modified-Since",
    }  # fmt: skip
    assert {"Host: a.example", "Accept-Encoding: identity", "Connection: close"} < set(headers)


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with internet({"a.example": answer(b"abc")}, limits=LIMITS) as (net, _):
        assert (await net.get("http://a.example/")).body == b"abc"


async def test_every_download_opens_and_closes_its_own_connection() -> None:
    async with internet({"a.example": answer(b"abc")}, limits=LIMITS) as (net, origins):
        for _ in range(3):
            await net.get("http://a.example/")
        assert len(net.detour.dialled) == 3
        await until(lambda: not origins["a.example"].open)


async def test_redirects_are_followed_up_to_their_limit() -> None:
    scripts = {
        "a.example": by_path({"/": redirect("/1", status=307), "/1": redirect("//b.example/2")}),
        "b.example": by_path({"/2": redirect("3", status=301), "/3": answer(b"abc")}),
        "loop.example": redirect("/"),
        "lost.example": redirect(""),
    }
    async with internet(scripts, limits=LIMITS) as (net, origins):
        assert (await net.get("http://a.example/")).body == b"abc"
        assert b"Host: b.example" in origins["b.example"].requests[0]
        with pytest.raises(SourceRedirectError, match="more than 5 times"):
            await net.get("http://loop.example/")
        with pytest.raises(SourceRedirectError, match="to nowhere"):
            await net.get("http://lost.example/")
        assert len(origins["loop.example"].requests) == 6


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_transient_status_is_retried_once(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    scripts = {"a.example": in_turn(answer(status=status), answer(b"abc"))}
    async with internet(scripts, limits=LIMITS) as (net, _):
        assert (await net.get("http://a.example/")).body == b"abc"
    assert caplog.messages.count("source.retried") == 1


async def test_a_failed_connect_is_retried_once() -> None:
    names = {"a.example": [["93.184.0.9"], ["93.184.0.1"]], "b.example": [["93.184.0.9"]]}
    async with internet({"x.example": answer(b"abc")}, names=names, limits=LIMITS) as (net, _):
        assert (await net.get("http://a.example/")).body == b"abc"
        with pytest.raises(SourceConnectFailed):
            await net.get("http://b.example/")
        assert net.names.asked == ["a.example"] * 2 + ["b.example"] * 2


@pytest.mark.parametrize(
    ("status", "expected", "requests"),
    [
        (503, SourceServerError, 2),
        (500, SourceServerError, 1),
        (429, SourceServerError, 1),
        (404, SourceStatusError, 1),
    ],
)
async def test_nothing_is_tried_more_than_twice_and_other_statuses_only_once(
    status: int, expected: type[EditError], requests: int
) -> None:
    async with internet({"a.example": answer(status=status)}, limits=LIMITS) as (net, origins):
        with pytest.raises(expected) as caught:
            await net.get("http://a.example/")
        assert len(origins["a.example"].requests) == requests
    assert caught.value.details == {"origin_status": status}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


async def test_tls_is_verified_against_the_name_in_the_url(authority: trustme.CA) -> None:
    server, client = server_context(authority, "a.example"), ssl.create_default_context()
    authority.configure_trust(client)
    seen: list[str] = []
    server.sni_callback = lambda _, name, __: seen.append(name)
    scripts = {"a.example": answer(b"abc")}
    names = {"b.example": [["93.184.0.1"]]}
    async with internet(
        scripts, names=names, server_tls=server, client_tls=client, limits=LIMITS
    ) as (net, _):
        assert (await net.get("https://a.example/")).body == b"abc"
        assert seen == ["a.example"]
        with pytest.raises(SourceConnectFailed, match="certificate"):
            await net.get("https://b.example/")


async def test_an_unknown_certificate_authority_is_not_trusted(authority: trustme.CA) -> None:
    server = server_context(authority, "a.example")
    async with internet({"a.example": answer(b"abc")}, server_tls=server, limits=LIMITS) as (
        net,
        origins,
    ):
        with pytest.raises(SourceConnectFailed, match="certificate") as refused:
            await net.get("https://a.example/")
        assert not refused.value.retryable
        assert len(net.detour.dialled) == 1  # a second try would fail as well
    assert origins["a.example"].requests == []


async def test_a_redirect_from_https_to_http_is_refused(authority: trustme.CA) -> None:
    server, client = server_context(authority, "a.example"), ssl.create_default_context()
    authority.configure_trust(client)
    scripts = {"a.example": redirect("http://a.example/")}
    async with internet(scripts, server_tls=server, client_tls=client, limits=LIMITS) as (
        net,
        origins,
    ):
        with pytest.raises(SourceRedirectError, match="from https to http"):
            await net.get("https://a.example/")
    assert len(origins["a.example"].requests) == 1


async def test_a_plain_answer_to_a_tls_handshake_is_a_failed_connect() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        writer.close()

    async with plain_server(accept, LIMITS) as net:
        with pytest.raises(SourceConnectFailed, match="TLS"):
            await net.get("https://a.example/")


async def test_a_cookie_is_sent_to_its_host_for_the_rest_of_the_chain_only() -> None:
    def set_cookies(location: str) -> Script:
        cookies = ["Set-Cookie: Anon=1; path=/; HttpOnly", 'Set-Cookie: b="2 3"', "Set-Cookie: =x"]
        return answer(status=302, headers=[f"Location: {location}", *cookies])

    scripts = {
        "a.example": by_path(
            {"/": set_cookies("//b.example/"), "/again": redirect("/end"), "/end": answer(b"abc")}
        ),
        "b.example": redirect("//a.example/again"),
    }
    async with internet(scripts, limits=LIMITS) as (net, origins):
        for _ in range(2):
            assert (await net.get("http://a.example/")).body == b"abc"
        sent = [
            b'\r\nCookie: Anon=1; b="2 3"\r\n' in head for head in origins["a.example"].requests
        ]
        assert sent == [False, True, True] * 2
        assert not any(b"Cookie" in head for head in origins["b.example"].requests)


async def test_the_user_agent_is_the_settings() -> None:
    limits = replace(LIMITS, user_agent="edits/1 (+https://edit.example)")
    async with internet({"a.example": answer(b"abc")}, limits=limits) as (net, origins):
        await net.get("http://a.example/")
    assert b"User-Agent: edits/1 (+https://edit.example)\r\n" in origins["a.example"].requests[0]


async def test_a_redirect_with_spaces_and_raw_bytes_is_followed() -> None:
    scripts = {"a.example": by_path({"/": redirect("/a b\xe9"), "/a%20b%C3%A9": answer(b"abc")})}
    async with internet(scripts, limits=LIMITS) as (net, _):
        assert (await net.get("http://a.example/")).body == b"abc"
