import asyncio
import ssl

import httpcore
import pytest
from hypothesis import given, settings, strategies as st
from support.servers.origin import fetch_alone

from retouch.errors import EditError
from retouch.net.cache_headers import read_cache_headers, read_max_stale_s
from retouch.net.connect import Connector
from retouch.net.download import Download, Downloader
from retouch.net.limits import FetchLimits
from retouch.net.url import parse_url

pytestmark = pytest.mark.fuzz

LIMITS = FetchLimits(max_bytes=64)
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

statuses = st.sampled_from([100, 101, 199, 200, 200, 200, 204, 206, 301, 302, 304, 404, 500, 999])
names = st.sampled_from(
    ["Content-Length", "Transfer-Encoding", "Content-Encoding", "Location", "ETag", "Age",
     "Cache-Control", "Connection", "Upgrade", "Content-Type", "Trailer"]
)  # fmt: skip
values = st.sampled_from(
    ["0", "5", "64", "65", "-1", "9" * 30, "chunked", "identity", "gzip", "/", "//b.example/x",
     "https://b.example", "http://[", "max-age=5", "close", "websocket", '"e"', ""]
) | st.text(st.characters(max_codepoint=255), max_size=20)  # fmt: skip
bodies = st.lists(
    st.binary(max_size=70) | st.sampled_from([b"5\r\nabcde\r\n", b"0\r\n\r\n", b"\r\n"]), max_size=4
)


@st.composite
def answers(draw: st.DrawFn) -> list[bytes]:
    """What an origin may say: mostly HTTP."""
    lines = [f"HTTP/1.1 {draw(statuses)} -"]
    lines += [f"{name}: {value}" for name, value in draw(st.lists(st.tuples(names, values)))]
    head = "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"
    return [head, *draw(bodies)]


async def fetch(answer: list[bytes]) -> Download | EditError:
    network = httpcore.AsyncMockBackend(answer)
    fetcher = Downloader(
        LIMITS,
        Connector(LIMITS, resolve=lambda *_: ["1.1.1.1"], network=network, ssl_context=NO_TLS),
    )
    try:
        return await fetch_alone(fetcher, parse_url("http://a.example/"), timeout_s=5, etag='"e"')
    except EditError as error:
        return error


@settings(deadline=None)  # on a busy machine
@given(answers() | st.lists(st.binary(min_size=1), max_size=4))
def test_any_answer_is_an_image_within_the_limit_or_a_typed_error(answer: list[bytes]) -> None:
    fetched = asyncio.run(fetch(answer))
    if isinstance(fetched, Download):
        assert len(fetched.body or b"") <= LIMITS.max_bytes
        for text in (fetched.etag, fetched.last_modified):
            assert text is None or (text.isascii() and text.isprintable())


@given(st.text() | st.lists(st.sampled_from('max-age= s-maxage=5," \t;no-store 99')).map("".join))
def test_any_cache_control_can_be_read(value: str) -> None:
    headers = {b"cache-control": value, b"age": value}
    max_age_s, _ = read_cache_headers(lambda name: headers.get(name, ""))
    assert max_age_s is None or 0 <= max_age_s <= 2**31
    assert 0 <= read_max_stale_s(lambda name: headers.get(name, "")) <= 2**31
