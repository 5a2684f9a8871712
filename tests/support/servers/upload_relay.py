"""A relay in front of a real server that tracks the progress of each upload, and can slow or cut it.

Unlike `fault_proxy.FaultProxy` it forwards a body while it arrives: a cut leaves the server with a part.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

_PIECE_BYTES = 8192
_LINGER_0 = struct.pack("ii", 1, 0)
_TIMEOUT_S = 20.0


@dataclass
class Upload:
    """One PUT: the bytes of its body, and the bytes sent to the server."""

    target: str
    length: int
    sent: int = 0


@dataclass
class Relay:
    """Listens on 127.0.0.1. `cut` says after how many bytes of its body an upload is cut, or None."""

    upstream: tuple[str, int]
    bytes_per_s: float = float("inf")
    cut: Callable[[Upload], int | None] = lambda _: None
    under_way: list[Upload] = field(default_factory=list)
    """Uploads whose body is not complete yet."""
    ended: list[Upload] = field(default_factory=list)
    """Uploads whose body was complete, or never will be."""
    _open: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._listener = socket.socket()
        # Bytes in buffers would still be sent for a client that was killed.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def cut_short(self) -> list[Upload]:
        return [upload for upload in self.ended if upload.sent < upload.length]

    def drop(self) -> None:
        """Close every connection, and drop what is still in buffers."""
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def wait_until_idle(self) -> None:
        give_up_at_s = time.monotonic() + _TIMEOUT_S
        while self.under_way:
            assert time.monotonic() < give_up_at_s, self.under_way
            time.sleep(0.01)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self.upstream) as server:
            self._open += (client, server)
            self._start(_pour, server, client)
            data = b""
            try:
                while chunk := client.recv(_PIECE_BYTES):
                    data += chunk
                    if b"\r\n\r\n" in data:
                        data = self._pass_on(data, client, server)
            finally:
                for end in (client, server):
                    self._open.remove(end)
                server.shutdown(socket.SHUT_RDWR)  # closing it would not wake the other thread

    def _pass_on(self, data: bytes, client: socket.socket, server: socket.socket) -> bytes:
        """Forward one request; return the bytes already read of the next."""
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value for name, _, value in (line.partition(":") for line in lines)}
        upload = Upload(lines[0].split(" ")[1], int(fields.get("content-length", "0")))
        server.sendall(head + b"\r\n\r\n")
        is_upload = lines[0].startswith("PUT ")
        if is_upload:
            self.under_way.append(upload)
        try:
            return self._pass_body(upload, body, client, server)
        finally:
            if is_upload:
                self.under_way.remove(upload)
                self.ended.append(upload)

    def _pass_body(
        self, upload: Upload, piece: bytes, client: socket.socket, server: socket.socket
    ) -> bytes:
        cut_at = self.cut(upload)
        while True:
            left = upload.length - upload.sent
            if cut_at is not None and upload.sent + len(piece) >= cut_at:
                server.sendall(piece[: cut_at - upload.sent])
                upload.sent = cut_at
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
                raise ConnectionAbortedError
            server.sendall(piece[:left])
            upload.sent += len(piece[:left])
            time.sleep(len(piece) / self.bytes_per_s)
            if upload.sent == upload.length:
                return piece[left:]
            piece = client.recv(_PIECE_BYTES)
            if not piece:
                raise ConnectionAbortedError


def _pour(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
