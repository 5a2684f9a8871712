"""An HTTP proxy in front of a real server that injects faults by a plan.

A step of the plan is a function of the exchange: it passes it on, corrupts it or makes up the answer.
"""

import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_TIMEOUT_S = 20.0
_LINGER_0 = struct.pack("ii", 1, 0)


@dataclass
class Exchange:
    """One request as it came, the socket it came by, and the way to the real server."""

    head: bytes
    body: bytes
    client: socket.socket
    upstream: tuple[str, int]
    closing: threading.Event

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        pairs = (line.partition(":") for line in lines if line)
        return {name.strip().lower(): value.strip() for name, _, value in pairs}

    def forward(self) -> bytes:
        """Return the real server's whole answer; the server closes the connection after it."""
        head = self.head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        with socket.create_connection(self.upstream, timeout=_TIMEOUT_S) as upstream:
            upstream.sendall(head + self.body)
            answer = b""
            while chunk := upstream.recv(65536):
                answer += chunk
            return answer

    def reset(self) -> None:
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        self.client.close()


Step = Callable[[Exchange], None]


def passed(exchange: Exchange) -> None:
    exchange.client.sendall(exchange.forward())


def reset(exchange: Exchange) -> None:
    exchange.reset()


def lost(exchange: Exchange) -> None:
    exchange.forward()
    exchange.reset()


def silent(exchange: Exchange) -> None:
    exchange.closing.wait(_TIMEOUT_S)


def garbage(exchange: Exchange) -> None:
    exchange.client.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")


def cut(missing: int) -> Step:
    return lambda exchange: exchange.client.sendall(exchange.forward()[:-missing])


def answered(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Step:
    fields = {"Connection": "close", "Content-Length": str(len(body)), **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    answer = f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode() + body
    return lambda exchange: exchange.client.sendall(answer)


def s3_error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Step:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>x</Message></Error>"
    return answered(status, body.encode(), {"Content-Type": "application/xml", **(headers or {})})


def flipped(exchange: Exchange) -> None:
    """Flip one bit of the body on its way to the server."""
    body = bytearray(exchange.body)
    if body:
        body[len(body) // 2] ^= 1
    exchange.body = bytes(body)
    passed(exchange)


@dataclass
class FaultProxy:
    """Listens on 127.0.0.1; runs the steps of `plan` in order, then `otherwise` for ever."""

    upstream: tuple[str, int]
    plan: deque[Step] = field(default_factory=deque)
    otherwise: Step = passed
    tls: ssl.SSLContext | None = None
    greet: Callable[[socket.socket], None] = lambda _: None
    """Runs on a connection before anything is read from it."""
    seen: list[Exchange] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._closing = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        # Closing a listener does not wake its accept(); shutting it down does.
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(_TIMEOUT_S)
        # A client that disconnects is not an error here: many faults are meant to cause that.
        with suppress(OSError), client:
            self.greet(client)
            if self.tls is None:
                self._answer(client)
                return
            with self.tls.wrap_socket(client, server_side=True) as wrapped:
                self._answer(wrapped)

    def _answer(self, client: socket.socket) -> None:
        exchange = self._read(client)
        if exchange is not None:
            self.seen.append(exchange)
            (self.plan.popleft() if self.plan else self.otherwise)(exchange)

    def _read(self, client: socket.socket) -> Exchange | None:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = client.recv(65536)
            if not chunk:
                return None
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        exchange = Exchange(head + b"\r\n\r\n", body, client, self.upstream, self._closing)
        length = int(exchange.headers.get("content-length", "0"))
        pieces = [body]
        while (got := sum(map(len, pieces))) < length:
            chunk = client.recv(min(1 << 20, length - got))
            if not chunk:
                return None
            pieces.append(chunk)
        exchange.body = b"".join(pieces)
        return exchange
