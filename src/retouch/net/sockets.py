"""TCP and TLS for httpcore that read no more than is asked for.

The streams of event loops read ahead: asyncio's 256 KiB at a time, and uvloop's, which uvicorn takes
where it finds it, up to 8 MiB before anybody can say stop.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

import anyio
import httpcore
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.streams.tls import TLSStream

READ_BYTES = 8 * 1024


class Sockets(httpcore.AsyncNetworkBackend):
    """Connects to addresses, not to names."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the port's signature
        local_address: str | None = None,  # noqa: ARG002 - as above
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the address `host`.

        Raises:
            httpcore.ConnectTimeout: it took longer than `timeout`, in seconds.
            httpcore.ConnectError: anything else.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with _told(httpcore.ConnectTimeout, httpcore.ConnectError):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                async with asyncio.timeout(timeout):
                    await asyncio.get_running_loop().sock_connect(sock, (host, port))
            except BaseException:
                sock.close()
                raise
        return _Stream(_Socket(sock))

    async def connect_unix_socket(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: no address is a path."""
        raise httpcore.ConnectError("no local sockets")


class _Socket(ByteReceiveStream, ByteSendStream):
    """A connected socket as anyio's TLS wants it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        size = min(max_bytes, READ_BYTES)
        data = await asyncio.get_running_loop().sock_recv(self._sock, size)
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._sock, item)

    async def send_eof(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        self._sock.close()


class _Stream(httpcore.AsyncNetworkStream):
    """A connection, plain or in TLS."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        with _told(httpcore.ReadTimeout, httpcore.ReadError):
            async with asyncio.timeout(timeout):
                with contextlib.suppress(anyio.EndOfStream):
                    data: bytes = await self._inner.receive(max_bytes)
                    return data
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        with _told(httpcore.WriteTimeout, httpcore.WriteError):
            async with asyncio.timeout(timeout):
                await self._inner.send(buffer)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the port's signature
    ) -> httpcore.AsyncNetworkStream:
        with _told(httpcore.ConnectTimeout, httpcore.ConnectError):
            async with asyncio.timeout(timeout):
                inner = await TLSStream.wrap(
                    self._inner,
                    ssl_context=ssl_context,
                    hostname=server_hostname,
                    standard_compatible=False,
                    server_side=False,
                )
        return _Stream(inner)

    def get_extra_info(self, info: str) -> Any:
        """Return nothing: httpcore asks for ALPN, of which HTTP/1.1 needs none."""


@contextlib.contextmanager
def _told(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """Tell faults in httpcore's words."""
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
        raise failed(str(error)) from error
