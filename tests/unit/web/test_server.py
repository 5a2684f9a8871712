"""What uvicorn and BentoML do without `web/server.py`: a test that fails here means a patch can go."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
import uvicorn
from _bentoml_impl.worker.service import main as bentoml_worker
from bentoml._internal.server.http import traffic
from circus.sockets import CircusSocket  # type: ignore[import-untyped]
from starlette.responses import Response
from starlette.types import Message
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from retouch.web import server
from retouch.web.standby import Channel

GET = b"GET / HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture
def unpatched() -> Iterator[None]:
    before = HTTP_PROTOCOLS["auto"], traffic.TimeoutMiddleware
    listen = CircusSocket.bind_and_listen
    yield
    CircusSocket.bind_and_listen = listen
    HTTP_PROTOCOLS["auto"], vars(traffic)["TimeoutMiddleware"] = before


class Transport(asyncio.Transport):
    """Takes what is written, and sends nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@contextmanager
def connect(kind: type[H11Protocol]) -> Iterator[tuple[H11Protocol, Transport]]:
    config = uvicorn.Config(Response("ok"), http=kind, log_config=None, ws="none")
    connection = kind(config, ServerState(), {}, asyncio.get_running_loop())
    transport = Transport()
    connection.connection_made(transport)
    yield connection, transport
    connection.connection_lost(None)


def test_bentoml_hands_no_choice_of_protocol_on_to_uvicorn() -> None:
    assert "http" not in {option.name for option in bentoml_worker.params}


@pytest.mark.usefixtures("unpatched")
def test_once_installed_a_server_uses_our_connections() -> None:
    server.install(Channel())
    config = uvicorn.Config(Response("ok"), log_config=None)
    config.load()
    assert config.http_protocol_class is server.Connection


@pytest.mark.usefixtures("unpatched")
def test_circus_raises_where_a_port_is_taken_and_ours_ends_with_one_line() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with closing(CircusSocket(host="127.0.0.1", port=port)) as late:
            with pytest.raises(OSError, match="Address already in use"):
                late.bind_and_listen()
            server.install(Channel())
            with pytest.raises(SystemExit, match=f"cannot listen on 127.0.0.1:{port}: .*--port"):
                late.bind_and_listen()


@pytest.mark.usefixtures("unpatched")
async def test_bentoml_keeps_a_timer_after_each_answer_and_ours_keeps_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, timers = asyncio.get_running_loop(), []
    call_later = loop.call_later

    def noting(*args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        timers.append(call_later(*args, **kwargs))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", noting)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    await traffic.TimeoutMiddleware(Response("ok"), timeout=60)(scope, receive, send)
    (timer,) = timers
    assert not timer.cancelled()
    timer.cancel()
    server.install(Channel())
    await traffic.TimeoutMiddleware(Response("ok"), timeout=60)(scope, receive, send)
    assert timers == [timer]


async def test_uvicorn_takes_a_wish_for_another_protocol_for_a_fault_and_ours_does_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    upgrade = GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    with connect(H11Protocol) as (connection, _):
        connection.data_received(upgrade)
    assert "Unsupported upgrade request." in caplog.messages
    caplog.clear()
    with connect(server.Connection) as (connection, _):
        connection.data_received(upgrade)
    assert caplog.messages == []


async def test_uvicorn_takes_a_request_of_two_lengths_and_ours_refuses_it() -> None:
    two = GET.replace(b"GET", b"POST") + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    for kind, answer in ((H11Protocol, b""), (server.Connection, b"HTTP/1.1 400 ")):
        with connect(kind) as (connection, transport):
            connection.data_received(two)
            assert transport.written.startswith(answer)
            assert bool(transport.written) is bool(answer)


@pytest.mark.parametrize(("size", "is_taken"), [(1, False), (300, True)])
async def test_a_body_in_many_tiny_chunks_is_refused(size: int, is_taken: bool) -> None:
    head = GET.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    with connect(server.Connection) as (connection, transport):
        connection.data_received(head)
        for _ in range(11):
            if not transport.written:
                connection.data_received(chunk * 100)
        assert transport.written.startswith(b"" if is_taken else b"HTTP/1.1 400 ")
        assert bool(transport.written) is not is_taken


async def test_uvicorn_fails_where_a_body_breaks_in_the_middle_of_the_answer_and_ours_ends_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    head = GET.replace(b"GET", b"POST") + b"Transfer-Encoding: chunked\r\n\r\n"
    begun = {"type": "http.response.start", "status": 200, "headers": []}
    with connect(H11Protocol) as (connection, _):
        connection.data_received(head)
        await connection.cycle.send(begun)
        with pytest.raises(Exception, match="can't handle event type Response"):
            connection.data_received(b"broken\r\n")
    with connect(server.Connection) as (connection, transport):
        connection.data_received(head)
        await connection.cycle.send(begun)
        connection.data_received(b"broken\r\n")
        assert transport.is_aborted
