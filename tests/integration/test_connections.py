"""What a caller can make a connection hold, and for how long, over real sockets."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from retouch.web.server import Connection

pytestmark = pytest.mark.integration

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LARGE = bytes(16 << 20)
UPGRADE = (
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
)
left = asyncio.Event()
"""Set when the caller of /left has gone."""


def last_of(head: bytes) -> bytes:
    return head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")


class Quick(Connection):
    check_every_s = 0.3
    max_connections = 20


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer when the body has come, at /large at length and at /late late."""
    if scope["type"] != "http":
        return
    came, more = b"", scope["path"] not in {"/early", "/begun"}
    while more:
        message = await receive()
        came, more = came + message.get("body", b""), message.get("more_body", False)
    if scope["path"] == "/begun":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
    if scope["path"] == "/late":
        await asyncio.sleep(1)
    if scope["path"] == "/left":
        assert (await receive())["type"] == "http.disconnect"
        left.set()
    body = {"/large": LARGE, "/echo": came}.get(scope["path"], b"ok")
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    port: int
    server: uvicorn.Server

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def get(self, head: bytes = GET) -> bytes:
        """Return the whole answer and what follows it, until the connection ends."""
        reader, writer = await self.connect()
        writer.write(head)
        try:
            return await asyncio.wait_for(reader.read(), 20)
        finally:
            writer.close()


@asynccontextmanager
async def served(kind: type[H11Protocol] = Quick) -> AsyncIterator[Served]:
    config = uvicorn.Config(app, http=kind, port=0, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it has no event for it
        await asyncio.sleep(0.01)
    try:
        yield Served(server.servers[0].sockets[0].getsockname()[1], server)
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


async def seconds_until_ended(service: Served, first: bytes, again: bytes = b"") -> float:
    """Send `first`, then `again` ten times a second, and hear how long that is let happen."""
    reader, writer = await service.connect()
    writer.write(first)
    began_s = asyncio.get_running_loop().time()
    ended = asyncio.create_task(reader.read())
    try:
        while not ended.done():
            assert asyncio.get_running_loop().time() - began_s < 5, "it is not ended"
            writer.write(again)
            await asyncio.sleep(0.1)
    finally:
        writer.close()
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
    return asyncio.get_running_loop().time() - began_s


STALLING = {
    "silent": (b"", b""),
    "half a head": (b"GET /", b""),
    "dripped head": (b"GET / HTTP/1.1\r\n", b"A: b\r\n"),
    "dripped second head": (GET, b"G"),
    "endless after the answer": (CHUNKED.replace(b"/ ", b"/early ", 1), b"1\r\nA\r\n"),
}


@pytest.mark.parametrize(("first", "again"), STALLING.values(), ids=STALLING)
async def test_a_client_that_sends_no_whole_request_is_ended(first: bytes, again: bytes) -> None:
    async with served() as service:
        assert await seconds_until_ended(service, first, again) < 4
        assert service.connections == 0


async def test_uvicorn_alone_ends_none_of_them() -> None:
    async with served(H11Protocol) as service:
        ends = [
            asyncio.create_task(seconds_until_ended(service, first, again))
            for first, again in STALLING.values()
        ]
        done, _ = await asyncio.wait(ends, timeout=2)
        assert not done
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)


async def test_an_answer_that_takes_long_is_waited_for() -> None:
    late = last_of(GET.replace(b"/ ", b"/late ", 1))
    async with served() as service:
        assert (await service.get(late)).endswith(b"ok")


async def test_a_caller_that_reads_nothing_is_ended_and_one_that_reads_slowly_is_not() -> None:
    async with served() as service:
        idle = await service.connect()
        slow = await service.connect()
        for _, writer in (idle, slow):
            writer.write(GET.replace(b"/ ", b"/large ", 1))
        left = len(LARGE)
        while left > 0:
            piece = await asyncio.wait_for(slow[0].read(1 << 20), 20)
            assert piece, f"ended {left} bytes early"
            left -= len(piece)
            await asyncio.sleep(0.01)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await idle[0].readexactly(len(LARGE))
        slow[1].close()
        idle[1].close()


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"GET /", b"a" * 65536),
        (b"GET / HTTP/1.1\r\nA: ", b"a" * 65536),
        (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 10_000),
        (CHUNKED + b"0\r\n", b"A: b\r\n" * 10_000),
        (CHUNKED + b"1;", b"a" * 65536),
    ],
    ids=["target", "header", "headers", "trailers", "chunk extension"],
)
async def test_what_is_no_body_is_bounded(first: bytes, again: bytes) -> None:
    async with served() as service:
        _, writer = await service.connect()
        writer.write(first)
        sent_bytes = 0
        with suppress(ConnectionError):
            while sent_bytes < 1 << 21:
                writer.write(again)
                await writer.drain()
                await asyncio.sleep(0.005)
                sent_bytes += len(again)
        assert sent_bytes < 1 << 21, "it is not ended"
        writer.close()


async def test_a_head_too_long_is_refused_in_words() -> None:
    async with served() as service:
        reader, writer = await service.connect()
        writer.write(b"GET / HTTP/1.1\r\nA: " + b"b" * 66_000)
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()


async def test_a_large_body_of_small_pieces_is_no_head() -> None:
    pieces = (b"12c\r\n" + b"A" * 300 + b"\r\n") * 1_500
    async with served() as service:
        reader, writer = await service.connect()
        writer.write(CHUNKED + pieces + b"0\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_pipelined_requests_are_answered_in_order_however_many() -> None:
    async with served() as service:
        answers = await service.get(GET * 100 + last_of(GET.replace(b"/ ", b"/echo ", 1)))
    assert answers.count(b"HTTP/1.1 200 ") == 101
    assert answers.endswith(b"content-length: 0\r\nConnection: close\r\n\r\n")


async def test_a_broken_pipelined_request_is_refused_after_the_answer_before_it() -> None:
    late = GET.replace(b"/ ", b"/late ", 1)
    async with served() as service:
        answers = await service.get(late + b"broken\r\n\r\n")
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"400"]


async def test_a_broken_body_ends_an_answer_that_has_begun() -> None:
    async with served() as service:
        with suppress(ConnectionError):
            begun = await service.get(CHUNKED.replace(b"/ ", b"/begun ", 1) + b"broken\r\n")
            assert begun.count(b"HTTP/1.1") == 1


async def test_a_flood_of_tiny_chunks_lets_others_be_served() -> None:
    async with served() as service:
        _, writer = await service.connect()
        writer.write(CHUNKED + b"1\r\nA\r\n" * 300_000)
        for _ in range(5):
            assert (await service.get(last_of(GET))).endswith(b"ok")
        writer.close()


async def test_a_websocket_is_answered_as_any_request() -> None:
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n"
    async with served() as service:
        assert b" 200 OK" in await service.get(GET.removesuffix(b"\r\n") + upgrade)


@pytest.mark.parametrize("cuts", [(), (40,), (len(UPGRADE),), (len(UPGRADE) + 2,)])
async def test_a_wish_for_another_protocol_is_ignored_and_its_body_read(cuts: tuple[int]) -> None:
    """As Java's HttpClient and curl --http2 send it to every server; the connection goes on."""
    sent = UPGRADE + b"hello" + UPGRADE + b"again" + last_of(GET)
    async with served() as service:
        reader, writer = await service.connect()
        for begin, end in pairwise((0, *cuts, len(sent))):
            writer.write(sent[begin:end])
            await asyncio.sleep(0.05)
        answers = await asyncio.wait_for(reader.read(), 20)
        writer.close()
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answers.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"hello", b"again", b"ok"]


async def test_who_leaves_is_noticed_also_with_a_request_sent_ahead() -> None:
    left.clear()
    async with served() as service:
        _, writer = await service.connect()
        writer.write(GET.replace(b"/ ", b"/left ", 1) + GET)
        await asyncio.sleep(0.1)
        writer.close()
        await asyncio.wait_for(left.wait(), 20)


async def test_idle_connections_make_room_and_those_at_work_stay() -> None:
    late = last_of(GET.replace(b"/ ", b"/late ", 1))
    async with served() as service:
        working = asyncio.create_task(service.get(late))
        await asyncio.sleep(0.1)
        idle = [await service.connect() for _ in range(60)]
        assert (await service.get(last_of(GET))).endswith(b"ok")
        assert service.connections <= Quick.max_connections
        assert (await working).endswith(b"ok")
        for _, writer in idle:
            writer.close()
