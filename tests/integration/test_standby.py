"""What callers get whose worker is killed: from the process that holds their connections as well."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest
from starlette.responses import JSONResponse

from retouch.web.standby import Channel, Hold, Standby

pytestmark = pytest.mark.integration
LOST = JSONResponse({"error": "lost"}, status_code=503, headers={"Retry-After": "5"})
START = {"type": "http.response.start", "status": 200, "headers": []}
STREAM = START | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}


class Transport(asyncio.Transport):
    """A connection's."""


def as_transport(connection: socket.socket, *, tls: bool = False) -> asyncio.Transport:
    """Return the transport of a connection."""
    return Transport({"socket": connection, "ssl_object": object() if tls else None})


@dataclass
class Worker:
    """A process that ends when it is told, and what it would do with a connection."""

    standby: Standby
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE
        )
        self.channel = Channel(self.standby.outbox, self.process.pid)

    def hold(self, connection: socket.socket, *, tls: bool = False) -> Hold:
        hold = self.channel.hold(as_transport(connection, tls=tls))
        hold.begin(LOST, b"e\r\nevent: error\n\n\r\n0\r\n\r\n")
        return hold

    def kill(self) -> None:
        self.process.kill()


@pytest.fixture(scope="module")
def standby() -> Standby:
    found = Standby()
    found.start()
    found.start()
    return found


@pytest.fixture
def worker(standby: Standby) -> Iterator[Worker]:
    worker = Worker(standby)
    yield worker
    worker.kill()
    worker.process.communicate()


@contextmanager
def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A caller's socket and its worker's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        caller = socket.create_connection(server.getsockname(), timeout=30)
        accepted, _ = server.accept()
    with caller, accepted:
        yield caller, accepted


def read_all(caller: socket.socket) -> bytes:
    pieces = bytearray()
    with suppress(ConnectionError):
        while piece := caller.recv(65536):
            pieces += piece
    return bytes(pieces)


def test_a_request_whose_worker_is_killed_is_answered_by_the_supervisor(worker: Worker) -> None:
    with connected() as (caller, accepted):
        worker.hold(accepted)
        accepted.close()  # as the kernel does
        worker.kill()
        head, _, body = read_all(caller).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"retry-after: 5\r\n" in head
    assert head.endswith(b"connection: close")
    assert body == LOST.body


def test_a_caller_who_is_still_sending_its_body_gets_the_answer_too(worker: Worker) -> None:
    with connected() as (caller, accepted):
        worker.hold(accepted)
        accepted.close()
        caller.sendall(b"x" * 100_000)
        worker.kill()
        assert read_all(caller).endswith(LOST.body)


def test_an_answer_that_has_begun_is_not_followed_by_another(worker: Worker) -> None:
    with connected() as (caller, accepted):
        worker.hold(accepted).follow(START)
        accepted.sendall(b"HTTP/1.1 200 OK\r\n")
        accepted.close()
        worker.kill()
        assert read_all(caller) == b"HTTP/1.1 200 OK\r\n"


def test_the_answer_is_that_of_the_last_request_on_a_connection(worker: Worker) -> None:
    with connected() as (caller, accepted):
        hold = worker.hold(accepted)
        hold.begin(JSONResponse({}, status_code=504))
        hold.end()
        hold.begin(JSONResponse({}, status_code=504))
        hold.begin(JSONResponse({}, status_code=502))
        accepted.close()
        worker.kill()
        assert read_all(caller).startswith(b"HTTP/1.1 502 ")


def test_a_stream_whose_worker_is_killed_ends_with_an_error(worker: Worker) -> None:
    with connected() as (caller, accepted):
        worker.hold(accepted).follow(STREAM)
        accepted.close()
        worker.kill()
        assert read_all(caller) == b"e\r\nevent: error\n\n\r\n0\r\n\r\n"


def test_a_stream_that_is_over_ends_the_hold(worker: Worker) -> None:
    with connected() as (caller, accepted):
        hold = worker.hold(accepted)
        hold.follow(STREAM)
        hold.follow({"type": "http.response.body", "more_body": True})
        hold.follow({"type": "http.response.body"})
        accepted.close()
        assert read_all(caller) == b""  # before the worker ends


def test_requests_are_held_apart(worker: Worker) -> None:
    with connected() as (caller, accepted), connected() as (other, theirs):
        worker.hold(accepted).end()
        worker.hold(theirs)
        accepted.close()
        theirs.close()
        worker.kill()
        assert read_all(caller) == b""
        assert read_all(other).endswith(LOST.body)


def test_a_worker_that_has_long_ended_when_its_request_comes_is_known_to_be_dead(
    worker: Worker,
) -> None:
    worker.kill()
    worker.process.wait()
    with connected() as (caller, accepted):
        worker.hold(accepted)
        accepted.close()
        assert read_all(caller).endswith(LOST.body)


def test_a_connection_with_tls_is_not_held(worker: Worker) -> None:
    with connected() as (caller, accepted):
        worker.hold(accepted, tls=True)
        accepted.close()
        assert read_all(caller) == b""


def test_without_a_supervisor_nothing_is_held() -> None:
    gone, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gone.close()
    with connected() as (caller, accepted), ours:
        for channel in (Channel(), Channel(ours, 1)):
            hold = channel.hold(as_transport(accepted))
            hold.begin(LOST)
            hold.follow(START)
        accepted.close()
        assert read_all(caller) == b""


def test_where_no_process_can_be_watched_nothing_is_held_and_no_worker_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", refuse)
    standby = Standby()
    standby.start()
    standby.outbox.settimeout(1)
    channel = Channel(standby.outbox, os.getpid())
    with connected() as (caller, accepted):
        for number in range(100):
            assert channel.send(number, b"lost", accepted)
            assert channel.send(number, b"")
        assert channel.send(100, b"lost", accepted)
        accepted.close()
        assert caller.recv(1) == b""
