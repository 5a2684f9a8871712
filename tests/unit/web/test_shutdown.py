import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from circus.watcher import Watcher
from starlette.responses import Response
from support.fakes import House, until
from support.web import open_host, settings

from retouch.lifecycle import State
from retouch.web import shutdown
from retouch.web.workers import Workers


@pytest.fixture
def server() -> Iterator[uvicorn.Server]:
    """A server that has installed its signal handlers."""
    server = uvicorn.Server(uvicorn.Config(Response("ok"), log_config=None))
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, server.handle_exit) for number in numbers]
    yield server
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


async def test_a_signal_closes_the_host_before_the_server_stops(server: uvicorn.Server) -> None:
    host = open_host(settings(), House())
    shutdown.stop_on_signals(host)
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: host.state is State.STOPPING)
    await until(lambda: server.should_exit)
    assert server.config.timeout_graceful_shutdown == 1


async def test_a_second_signal_stops_the_server_at_once(server: uvicorn.Server) -> None:
    host = open_host(settings(), House())
    closing = asyncio.create_task(host.close())
    await asyncio.sleep(0)
    shutdown.stop_on_signals(host)
    os.kill(os.getpid(), signal.SIGINT)
    await until(lambda: server.should_exit)
    await closing


async def test_where_uvicorn_handles_no_signals_they_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    shutdown.stop_on_signals(open_host(settings(), None))
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_a_process_of_the_supervisor_watches_it() -> None:
    threads = threading.active_count()
    shutdown.end_without_supervisor()
    assert threading.active_count() == threads


@pytest.mark.parametrize(("stopping", "logged"), [(False, ["process.died"]), (True, [])])
def test_a_process_that_ended_unasked_is_logged(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    stopping: bool,
    logged: list[str],
) -> None:
    caplog.set_level(logging.INFO)
    passed_on: list[Any] = []
    monkeypatch.setattr(Watcher, "notify_event", lambda _, *message: passed_on.append(message))
    monkeypatch.setattr(Watcher, "is_stopping", lambda _: stopping)
    shutdown.watch_processes(Workers())
    message = {"process_pid": 7, "exit_code": -9}
    Watcher("service", "true").notify_event("reap", message)
    assert [record.message for record in caplog.records] == logged
    assert passed_on == [("reap", message)]
