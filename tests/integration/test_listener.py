"""Two servers on one socket: which of them accepts a connection."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from support.fakes import House, until
from support.web import build_board, open_host, settings

from retouch.lifecycle import ModelHost
from retouch.web.listener import Listener, weigh
from retouch.web.metrics import Metrics
from retouch.web.workers import NOT_READY, Board

pytestmark = pytest.mark.integration
NAMES = ("first", "second")


class FailingMetrics(Metrics):
    """Fails as the gauges are observed."""

    def observe(self) -> None:
        raise AttributeError("a part is missing")


@asynccontextmanager
async def serve(
    shared: socket.socket,
    board: Board,
    index: int,
    host: ModelHost,
    metrics: Metrics | None = None,
    *,
    fresh_s: float = 3600.0,
) -> AsyncIterator[Listener]:
    answer = PlainTextResponse(NAMES[index], headers={"Connection": "close"})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while scope["method"] == "POST" and (await receive())["type"] != "http.disconnect":
            pass
        await answer(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    listener = Listener(server, board, index, host, metrics or Metrics(host), fresh_s=fresh_s)
    serving = asyncio.create_task(server.serve(sockets=[shared.dup()]))
    running = asyncio.create_task(listener.run())
    await until(lambda: server.started and not server.servers)  # the listener has its socket
    yield listener
    server.should_exit = True
    await asyncio.gather(serving, running)


async def ask(port: int, times: int = 12) -> set[str]:
    async with httpx.AsyncClient(trust_env=False) as client:
        answers = [await client.get(f"http://127.0.0.1:{port}/") for _ in range(times)]
    return {answer.text for answer in answers}


async def ask_until(port: int, names: set[str]) -> None:
    """Ask until only these have answered several times: a server takes a moment to pause."""
    async with asyncio.timeout(60):
        while await ask(port) != names:
            pass


@pytest.mark.parametrize("ready", [0, 1])
async def test_only_a_ready_worker_accepts_connections(ready: int) -> None:
    board, hosts = build_board(), [open_host(settings(), None), open_host(settings(), None)]
    hosts[ready] = open_host(settings(), House())
    with socket.create_server(("127.0.0.1", 0)) as shared:
        port = shared.getsockname()[1]
        async with serve(shared, board, 0, hosts[0]), serve(shared, board, 1, hosts[1]):
            await until(lambda: len(board.pids) == 2)
            await ask_until(port, {NAMES[ready]})
            assert await ask(port) == {NAMES[ready]}


async def test_a_worker_that_fails_to_listen_stops_and_leaves_the_port_to_the_other() -> None:
    board, host = build_board(), open_host(settings(), House())
    with socket.create_server(("127.0.0.1", 0)) as shared:
        port = shared.getsockname()[1]
        async with (
            serve(shared, board, 0, host),
            serve(shared, board, 1, host, FailingMetrics(host)),
        ):
            await ask_until(port, {"first"})
            assert await ask(port) == {"first"}


async def test_where_none_is_ready_health_routes_answer() -> None:
    board = build_board()
    with socket.create_server(("127.0.0.1", 0)) as shared:
        port = shared.getsockname()[1]
        async with serve(shared, board, 0, open_host(settings(), None)):
            assert await ask(port) == {"first"}
            board.report(1, NOT_READY)
            assert await ask(port) == {"first"}


@pytest.mark.parametrize(("fresh_s", "unknown"), [(3600.0, 1), (0.0, 0)])
async def test_connections_go_to_the_worker_that_has_fewer(fresh_s: float, unknown: int) -> None:
    """One that asks for nothing counts as well: for a while as an edit, and then for little."""
    board = build_board()
    with socket.create_server(("127.0.0.1", 0)) as shared:
        port = shared.getsockname()[1]
        host = open_host(settings(), House())
        async with (
            serve(shared, board, 0, host, fresh_s=fresh_s),
            serve(shared, board, 1, host, fresh_s=fresh_s),
        ):
            await until(lambda: len(board.pids) == 2)
            writers = []
            for count in range(1, 7):
                writers.append((await asyncio.open_connection("127.0.0.1", port))[1])
                loads = {weigh(0, unknown * n, n) for n in (count // 2, (count + 1) // 2)}
                await until(lambda loads=loads: set(board.loads) == loads)  # type: ignore[misc]
            for writer in writers:
                writer.close()
                await writer.wait_closed()
            await until(lambda: board.loads == [0, 0])


async def test_a_connection_that_may_ask_for_an_edit_weighs_less_than_an_edit() -> None:
    board = build_board()
    hosts = [open_host(settings(), House()) for _ in range(2)]
    all_day = asyncio.create_task(asyncio.sleep(3600))
    hosts[0].edits.add(all_day)
    with socket.create_server(("127.0.0.1", 0)) as shared:
        port = shared.getsockname()[1]
        async with serve(shared, board, 0, hosts[0]), serve(shared, board, 1, hosts[1]):
            await until(lambda: sorted(board.loads) == [0, weigh(1, 0, 0)])
            writers = []
            for loads in ([0, 1], [0, 2], [1, 2], [1, 3]):
                writers.append((await asyncio.open_connection("127.0.0.1", port))[1])
                expected = [weigh(1, loads[0], loads[0]), weigh(0, loads[1], loads[1])]
                await until(lambda wanted=expected: board.loads == wanted)  # type: ignore[misc]
            for writer in writers:
                writer.close()
                await writer.wait_closed()
            all_day.cancel()


async def test_a_request_whose_source_is_on_the_way_counts_as_an_edit() -> None:
    board = build_board()
    hosts = [open_host(settings(), House()) for _ in range(2)]
    all_day = asyncio.create_task(asyncio.sleep(3600))
    writers: list[asyncio.StreamWriter] = []

    async def post(port: int) -> None:
        writers.append((await asyncio.open_connection("127.0.0.1", port))[1])
        writers[-1].write(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n")
        counts = len(writers) // 2, (len(writers) + 1) // 2
        loads = sorted(weigh(count, 0, count) for count in counts)
        await until(lambda: sorted(board.loads) == loads)

    with socket.create_server(("127.0.0.1", 0)) as shared:
        port = shared.getsockname()[1]
        async with serve(shared, board, 0, hosts[0]), serve(shared, board, 1, hosts[1]):
            await until(lambda: len(board.pids) == 2)
            await post(port)
            hosts[board.loads.index(weigh(1, 0, 1))].edits.add(all_day)  # its source is there
            for _ in range(5):
                await post(port)
            for writer in writers:
                writer.close()
                await writer.wait_closed()
            await until(lambda: sorted(board.loads) == [0, weigh(1, 0, 0)])
            all_day.cancel()
