import asyncio
import gc
import time
import tracemalloc
from itertools import count

import pytest
from support.attacks.lone_fetch import measure
from support.servers.origin import (
    Exchange,
    Origin,
    Script,
    answer,
    by_path,
    internet,
    reset_after,
    say,
    until,
)

from retouch.errors import EditError, SourceEncoded, SourceProtocolError, SourceTooLarge
from retouch.net.limits import FetchLimits

pytestmark = pytest.mark.integration

LIMITS = FetchLimits(max_bytes=1 << 20, connect_timeout_s=2)
OK = b"HTTP/1.1 200 OK\r\n"
SLACK_S = 0.5


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (answer(b"", length=1 << 40), SourceTooLarge),
        (answer(b"x" * ((1 << 20) + 1)), SourceTooLarge),
        (answer(b"x" * ((1 << 20) + 1), length=-1), SourceTooLarge),
        (say(OK + b"\r\n", again=b"x" * 65536), SourceTooLarge),
        (say(CHUNKED, again=CHUNK), SourceTooLarge),
        (say(CHUNKED, again=b"1\r\nx\r\n" * 10_000), SourceProtocolError),
        (say(OK, again=b"X-A: b\r\n" * 1000), SourceProtocolError),
        (say(OK + b"X-A: ", again=b"b" * 65536), SourceProtocolError),
        (say(b"", again=b"HTTP/1.1 100 -\r\n\r\n" * 1000), SourceProtocolError),
        (say(CHUNKED + b"1;", again=b"x" * 65536), SourceProtocolError),
        (answer(b"x" * 10, length=20), SourceProtocolError),
        (reset_after(b""), SourceProtocolError),
        (reset_after(OK + b"Content-Length: 20\r\n\r\nabc"), SourceProtocolError),
        (answer(b"\x1f\x8b", headers=["Content-Encoding: gzip"]), SourceEncoded),
    ],
)
async def test_a_body_that_is_too_large_broken_or_compressed_is_refused_at_once(
    script: Script, expected: type[EditError]
) -> None:
    async with internet({"a.example": script}, limits=LIMITS) as (net, origins):
        with pytest.raises(EditError) as caught:
            await net.get("http://a.example/")
        assert type(caught.value) is expected
        await until(lambda: not origins["a.example"].open)


@pytest.mark.parametrize("length", [None, -1])
async def test_exactly_the_limit_passes(length: int | None) -> None:
    body = bytes(1 << 20)
    async with internet({"a.example": answer(body, length=length)}, limits=LIMITS) as (net, _):
        assert (await net.get("http://a.example/")).body == body


@pytest.mark.parametrize(
    "flood", [b"1\r\nx\r\n" * 10_000, b"\n".join([b"1"] * 10_000), b"1;" + b"x" * 65536]
)
async def test_a_flood_of_chunks_does_not_block_the_event_loop(flood: bytes) -> None:
    async with internet({"a.example": say(CHUNKED, again=flood)}, limits=LIMITS) as (net, _):
        task = asyncio.create_task(net.get("http://a.example/"))
        longest_s = 0.0
        while not task.done():
            began_s = time.monotonic()
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.monotonic() - began_s)
        assert isinstance(task.exception(), SourceProtocolError)
        assert longest_s < SLACK_S


@pytest.mark.parametrize(("loop", "read_ahead"), [("auto", 10 << 20), ("asyncio", 1 << 20)])
@pytest.mark.parametrize("pieces", [64, None], ids=["exactly the limit", "endless"])
async def test_memory_is_the_limit_and_what_the_event_loop_reads_ahead(
    pieces: int | None, loop: str, read_ahead: int
) -> None:
    """In a process of its own, since an origin in the same one holds some memory too."""
    limit = 4 << 20
    async with Origin(by_path({"/small": answer(b"x"), "/": pour(pieces)})) as origin:
        url = f"http://127.0.0.1:{origin.port}/"
        held = await measure(url, max_bytes=limit, times=1, loop=loop)
    assert held["size"] == (limit if pieces else -1)
    assert held["traced"] <= limit + read_ahead


async def test_a_body_over_the_limit_is_freed_without_garbage_collection() -> None:
    async with internet({"a.example": pour(None)}, limits=LIMITS) as (net, _):
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(4):
                with pytest.raises(SourceTooLarge):
                    await net.get("http://a.example/")
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert held < LIMITS.max_bytes


def pour(pieces: int | None) -> Script:
    """Send so many pieces of 64 KiB and close, or never stop."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(OK + b"\r\n")
        for _ in count() if pieces is None else range(pieces):
            await exchange.send(bytes(65536))

    return script
