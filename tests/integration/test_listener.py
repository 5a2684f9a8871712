"""Two servers on one socket: which of them accepts a connection."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from support.fakes import House, until
from support.web import build_board, open_host, settings

from retouch.lifecycle import ModelHost
from retouch.web.listener import EDIT, Listener
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
    new_s: float = 0.0,
) -> AsyncIterator[Listener]:
    app = PlainTextResponse(NAMES[index], headers={"Connection": "close"})
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    listener = Listener(server, board, index, host, metrics or Metrics(host), new_s=new_s)
    serving = asyncio.create_task(server.serve(sockets=[shared.dup()]))
    running = asyncio.create_task(listener.run())
    await until(lambda: server.started and not server.servers)  # the listener has the socket
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


async def test_a_worker_that_is_busier_than_another_leaves_it_the_next_connection() -> None:
    board = build_board()
    with socket.create_server(("127.0.0.1", 0)) as shared:
        port = shared.getsockname()[1]
        host = open_host(settings(), House())
        async with serve(shared, board, 0, host), serve(shared, board, 1, host):
            await until(lambda: len(board.pids) == 2)
            writers = []
            for count in range(1, 7):  # a connection that asks for nothing counts as well
                writers.append((await asyncio.open_connection("127.0.0.1", port))[1])
                await until(lambda count=count: sum(board.loads) == count)  # type: ignore[misc]
            assert board.loads == [3, 3]
            for writer in writers:
                writer.close()
                await writer.wait_closed()
            await until(lambda: board.loads == [0, 0])


async def test_a_burst_is_shared_out_evenly_though_one_becomes_an_edit_before_the_others() -> None:
    board = build_board()
    hosts = [open_host(settings(), House()) for _ in range(2)]
    all_day = asyncio.create_task(asyncio.sleep(3600))
    with socket.create_server(("127.0.0.1", 0)) as shared:
        port = shared.getsockname()[1]
        async with (
            serve(shared, board, 0, hosts[0], new_s=3600),
            serve(shared, board, 1, hosts[1], new_s=3600),
        ):
            await until(lambda: len(board.pids) == 2)
            writers = [(await asyncio.open_connection("127.0.0.1", port))[1]]
            await until(lambda: sum(board.loads) == EDIT + 1)
            hosts[board.loads.index(EDIT + 1)].edits.add(all_day)
            others = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            writers += [writer for _, writer in others]
            await until(lambda: board.loads == [3 * EDIT + 3] * 2)
            for writer in writers:
                writer.close()
                await writer.wait_closed()
            await until(lambda: sorted(board.loads) == [0, EDIT])
            all_day.cancel()
