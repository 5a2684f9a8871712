"""The answer that a caller gets whose worker dies: the supervisor has the connection too, and sends it.

A worker hands over each connection and what to send there if it dies, which the request decides, and
takes both back before its own answer begins. A worker that the kernel or a fault of the GPU kills then
costs its callers an error that they may retry, and not a broken connection.
"""

import asyncio
import itertools
import logging
import os
import resource
import selectors
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus

from bentoml._internal.context import server_context
from starlette.responses import Response
from starlette.types import Message

from retouch.logs import event

_log = logging.getLogger(__name__)
HOLD = "hold"
"""Where a scope's state has the hold on its connection."""
_STREAM = b"text/event-stream"
_OUTBOX = "RETOUCH_STANDBY"
"""Variable by which the supervisor hands its workers the file descriptor of their end."""
_HEAD = struct.Struct("qq")
"""Of each message: the worker's process id, and its number of the request."""
_MAX_MESSAGE_BYTES = 16384
_READ_BYTES = 1 << 16
_SEND_S = 1.0
"""How long a request may wait for a supervisor that does not read."""
_LINGER_S = 5.0
"""For a caller to read its answer: closing before it has sent its body would reset the connection."""
# The rest of the descriptors is for circus, which starts processes with them.
_MAX_HELD = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


class Channel:
    """The end of the worker with this `pid`. Without a supervisor it sends nothing."""

    def __init__(self, outbox: socket.socket | None = None, pid: int = 0) -> None:
        self._outbox = outbox
        self._pid = pid
        self._numbers = itertools.count()

    def hold(self, transport: asyncio.Transport) -> "Hold":
        """Return a hold on a connection. One with TLS is never held: only this process can write to it."""
        number = next(self._numbers)
        is_tls = transport.get_extra_info("ssl_object") is not None
        return Hold(None if is_tls else self, number, transport.get_extra_info("socket"))

    def send(self, number: int, answer: bytes, connection: socket.socket | None = None) -> bool:
        """Send a message, and return whether it could be sent. An empty answer ends the hold."""
        if not self._outbox:
            return False
        descriptors = [connection.fileno()] if connection else []
        try:
            socket.send_fds(self._outbox, [_HEAD.pack(self._pid, number), answer], descriptors)
        except OSError:  # the supervisor has died, or does not read
            return False
        return True


class Hold:
    """The hold on one connection: while it has begun and not ended, the supervisor has it too."""

    def __init__(self, channel: Channel | None, number: int, connection: socket.socket) -> None:
        self._channel = channel
        self._number = number
        self._connection = connection
        self._is_held = False
        self._chunks = b""

    def begin(self, response: Response, chunks: bytes = b"") -> None:
        """Have `response` sent if this process dies before it answers, and `chunks` to end a stream."""
        if self._channel:
            self._chunks = chunks
            connection = None if self._is_held else self._connection
            answer = write_response(response)
            self._is_held |= self._channel.send(self._number, answer, connection)

    def follow(self, message: Message) -> None:
        """Change or end the hold as the answer goes on; call it before the message is sent."""
        if message["type"] == "http.response.start":
            types = [value for name, value in message["headers"] if name == b"content-type"]
            if not self._chunks or not types or not types[0].startswith(_STREAM):
                self.end()
            elif self._channel and self._is_held:
                self._channel.send(self._number, self._chunks)
        elif not message.get("more_body"):
            self.end()

    def end(self) -> None:
        """Take the connection back."""
        if self._channel and self._is_held:
            self._channel.send(self._number, b"")
            self._is_held = False


class Standby:
    """The supervisor's end: holds the connections of its workers, and answers for those that die."""

    def __init__(self) -> None:
        self._inbox, self.outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._inbox.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inbox, selectors.EVENT_READ, self._read)
        self._held: dict[int, dict[int, tuple[socket.socket, bytes]]] = {}
        self._closing: dict[socket.socket, float] = {}
        self._thread = threading.Thread(target=self._run, name="standby", daemon=True)

    def start(self) -> None:
        """Begin in a thread; again it does nothing."""
        if not self._thread.is_alive():
            self._thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(_LINGER_S if self._closing else None):
                answer: Callable[[], None] = key.data
                answer()
            for connection, close_at_s in list(self._closing.items()):
                if time.monotonic() >= close_at_s:
                    self._close(connection)

    def _read(self) -> None:
        """Read all messages that wait."""
        room, flags = socket.CMSG_SPACE(array("i", [0]).itemsize), socket.MSG_CMSG_CLOEXEC
        with suppress(BlockingIOError):
            while True:
                message, ancillary, *_ = self._inbox.recvmsg(_MAX_MESSAGE_BYTES, room, flags)
                descriptors = array("i", b"".join(data for _, _, data in ancillary))
                pid, number = _HEAD.unpack_from(message)
                for descriptor in descriptors:
                    self._hold(pid, number, socket.socket(fileno=descriptor), message[_HEAD.size :])
                if not descriptors:
                    self._change(pid, number, message[_HEAD.size :])

    def _hold(self, pid: int, number: int, connection: socket.socket, answer: bytes) -> None:
        if sum(map(len, self._held.values())) >= _MAX_HELD:
            connection.close()
            return
        is_new = pid not in self._held
        self._held.setdefault(pid, {})[number] = (connection, answer)
        if is_new:
            self._watch(pid)

    def _change(self, pid: int, number: int, answer: bytes) -> None:
        held = self._held.get(pid, {})
        if number in held and answer:
            held[number] = (held[number][0], answer)
        elif number in held:
            held.pop(number)[0].close()

    def _watch(self, pid: int) -> None:
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            self._answer_for(pid)
        except OSError:  # some sandboxes refuse it: then nothing is held
            for connection, _ in self._held.pop(pid).values():
                connection.close()
        else:
            self._selector.register(
                process, selectors.EVENT_READ, partial(self._lose, pid, process)
            )

    def _lose(self, pid: int, process: int) -> None:
        self._selector.unregister(process)
        os.close(process)
        self._read()  # what it said before it died
        self._answer_for(pid)

    def _answer_for(self, pid: int) -> None:
        held = self._held.pop(pid, {})
        if held:
            event(_log, "requests.lost", level=logging.ERROR, pid=pid, requests=len(held))
        for connection, answer in held.values():
            connection.setblocking(False)
            with suppress(OSError):  # the caller has gone, or reads nothing
                connection.send(answer)
                connection.shutdown(socket.SHUT_WR)
            self._closing[connection] = time.monotonic() + _LINGER_S
            self._selector.register(
                connection, selectors.EVENT_READ, partial(self._drain, connection)
            )

    def _drain(self, connection: socket.socket) -> None:
        try:
            is_open = bool(connection.recv(_READ_BYTES))
        except OSError:
            is_open = False
        if not is_open:
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        del self._closing[connection]
        self._selector.unregister(connection)
        connection.close()


def open_standby() -> Standby | None:
    """Return the supervisor's end, which its workers inherit; None in a worker."""
    if server_context.worker_index is not None:
        return None
    standby = Standby()
    os.set_inheritable(standby.outbox.fileno(), True)
    os.environ[_OUTBOX] = str(standby.outbox.fileno())
    return standby


def open_channel() -> Channel:
    """Return this worker's end, if a supervisor has left it one."""
    if server_context.worker_index is None or _OUTBOX not in os.environ:
        return Channel()
    outbox = socket.socket(fileno=int(os.environ[_OUTBOX]))
    outbox.set_inheritable(False)
    outbox.settimeout(_SEND_S)
    return Channel(outbox, os.getpid())


def write_response(response: Response) -> bytes:
    """Return `response` as bytes of HTTP/1.1, after which the connection closes."""
    status = HTTPStatus(response.status_code)
    head = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    head += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*head, b"connection: close", b"", bytes(response.body)])


def write_last_chunks(text: str) -> bytes:
    r"""Return the chunks that end a chunked body with `text`.

    >>> write_last_chunks("over")
    b'4\r\nover\r\n0\r\n\r\n'
    """
    body = text.encode()
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
