import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.connects import watch_connects
from support.servers.origin import Origin, answer, by_path, fetch_alone, internet, redirect

from retouch.errors import (
    SourceUnreachable,
)
from retouch.net.connect import Connector
from retouch.net.download import Downloader
from retouch.net.limits import FetchLimits
from retouch.net.url import parse_url

pytestmark = pytest.mark.integration

LIMITS = FetchLimits(max_bytes=1 << 20, connect_timeout_s=2)

INSIDE = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]


@contextlib.contextmanager
def no_connect() -> Iterator[None]:
    connected: list[Any] = []
    with watch_connects(connected.append):
        yield
    assert connected == []


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_with_a_refused_address_is_not_dialled(address: str) -> None:
    fetcher = Downloader(LIMITS, Connector(LIMITS, resolve=lambda *_: ["93.184.215.14", address]))
    with no_connect(), pytest.raises(SourceUnreachable):
        await fetch_alone(fetcher, parse_url("http://a.example/"), timeout_s=5)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "2130706433",
        "0",
        "127。0。0。1",
        "[::1]",
        "[::]",
    ],
)
async def test_no_spelling_of_this_machine_is_dialled(host: str) -> None:
    fetcher = Downloader(LIMITS)
    with no_connect(), pytest.raises(SourceUnreachable):
        await fetch_alone(fetcher, parse_url(f"http://{host}/"), timeout_s=5)


async def test_a_name_is_looked_up_once_and_the_answer_dialled() -> None:
    names = {"rebind.example": [["93.184.0.1"], ["127.0.0.1"]]}
    async with internet({"a.example": answer(b"abc")}, names=names, limits=LIMITS) as (net, _):
        assert (await net.get("http://rebind.example/")).body == b"abc"
        assert net.names.asked == ["rebind.example"]
        assert net.detour.dialled == ["93.184.0.1"]


async def test_a_name_that_is_rebound_between_redirects_is_refused() -> None:
    names = {"rebind.example": [["93.184.0.1"], ["127.0.0.1"]]}
    async with internet({"a.example": redirect("/again")}, names=names, limits=LIMITS) as (net, _):
        with pytest.raises(SourceUnreachable):
            await net.get("http://rebind.example/")
        assert net.detour.dialled == ["93.184.0.1"]


@pytest.mark.parametrize(
    "location", ["http://inside.example/", "//127.0.0.1/", "http://[::1]/", "http://0x7f.1/"]
)
async def test_a_redirect_to_an_internal_address_looks_like_an_unknown_name(
    location: str,
) -> None:
    names = {host: [["127.0.0.1"]] for host in ("inside.example", "127.0.0.1", "0x7f.1")}
    names["::1"] = [["::1"]]
    scripts = {"a.example": by_path({"/in": redirect(location), "/no": redirect("//no.example/")})}
    async with internet(scripts, names=names, limits=LIMITS) as (net, _):
        connected: list[Any] = []
        with watch_connects(connected.append), pytest.raises(SourceUnreachable) as refused:
            await net.get("http://a.example/in")
        assert len(connected) == 1  # the origin that redirects
        with pytest.raises(SourceUnreachable) as unknown:
            await net.get("http://a.example/no")
    assert refused.value.message == unknown.value.message
    assert refused.value.details == unknown.value.details


async def test_an_allowed_host_and_port_may_be_internal() -> None:
    async with Origin(answer(b"abc")) as origin:
        allowed = frozenset({f"127.0.0.1:{origin.port}"})
        fetcher = Downloader(replace(LIMITS, allowed_hosts=allowed))
        url = parse_url(f"http://127.0.0.1:{origin.port}/")
        assert (await fetch_alone(fetcher, url, timeout_s=5)).body == b"abc"
        with no_connect(), pytest.raises(SourceUnreachable):
            await fetch_alone(fetcher, parse_url("http://127.0.0.1/"), timeout_s=5)
    assert f"Host: 127.0.0.1:{origin.port}".encode() in origin.requests[0]
