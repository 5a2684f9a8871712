"""Opens a connection only to an address that was checked."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NoReturn

import httpcore

from retouch.errors import (
    SourceConnectFailed,
    SourceProtocolError,
    SourceUnreachable,
    SourceUnresolved,
)
from retouch.net.sockets import READ_BYTES

Resolve = Callable[[str, int], Sequence[str]]

_HEAD_BYTES = 64 * 1024
_TRANSIENT_EAI = frozenset({socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM})


def resolve_host(host: str, port: int) -> list[str]:
    """Look up every address of `host`. Blocks. Raises OSError for an unknown name."""
    # Bytes, because a str goes through CPython's IDNA 2003 codec, which has errors of its own.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Lookups:
    """Looks names up, each in a thread of its own, so many at once. Belongs to one event loop.

    No pool: a look-up cannot be stopped, so one whose asker has gone would keep a pool from closing
    and the process from ending. Daemon threads keep neither.
    """

    def __init__(self, resolve: Resolve, *, max_lookups: int) -> None:
        self._resolve = resolve
        self._free = asyncio.Semaphore(max_lookups)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return what the name resolves to. Raises what the resolver does."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def settle(give: Callable[[Any], None], found: Any) -> None:
            self._free.release()
            if not answer.done():
                give(found)

        def look_up() -> None:
            give: Callable[[Any], None] = answer.set_result
            found: Any
            try:
                found = self._resolve(host, port)
            except Exception as error:  # noqa: BLE001 - whatever it is, the asker gets it
                give, found = answer.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, give, found)

        try:
            threading.Thread(target=look_up, name="resolve", daemon=True).start()
        except RuntimeError:  # the machine gives no more threads
            self._free.release()
            raise
        return await answer


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens one connection: one lookup, every answer judged, the judged literal dialled.

    A name with any refused answer is refused, so which answer is dialled makes no difference.
    """

    def __init__(
        self,
        network: httpcore.AsyncNetworkBackend,
        lookup: Callable[[str, int], Awaitable[Sequence[str]]],
        may_dial: Callable[[str], bool],
        *,
        max_dials: int,
        timeout_s: float,
    ) -> None:
        self._network = network
        self._lookup = lookup
        self._may_dial = may_dial
        self._max_dials = max_dials
        self._timeout_s = timeout_s
        self._raw: httpcore.AsyncNetworkStream | None = None
        self.head_bytes_left: int | None = _HEAD_BYTES
        """Bytes the head of the answer may still take; None once it is complete."""

    async def connect_tcp(
        self, host: str, port: int, *_: Any, **__: Any
    ) -> httpcore.AsyncNetworkStream:
        """Connect to `host`, or refuse to."""
        try:
            addresses = list(dict.fromkeys(await self._lookup(host, port)))
        except (OSError, RuntimeError, ValueError) as error:
            is_final = isinstance(error, ValueError) or (
                isinstance(error, socket.gaierror) and error.errno not in _TRANSIENT_EAI
            )
            if is_final:
                raise SourceUnreachable(host=host, reason="unknown") from error
            raise SourceUnresolved(host=host, reason="unresolved") from error
        if not addresses or not all(map(self._may_dial, addresses)):
            raise SourceUnreachable(host=host, reason="refused")
        self._raw = await self._dial(_interleave(addresses)[: self._max_dials], port)
        return _Metered(self._raw, self)

    async def connect_unix_socket(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: no URL leads to a local socket."""
        raise SourceUnreachable(reason="unix socket")

    async def _dial(self, addresses: list[str], port: int) -> httpcore.AsyncNetworkStream:
        """Try one address after the other, each with its share of the time that is left."""
        now = asyncio.get_running_loop().time
        ends_s = now() + self._timeout_s
        *others, last = addresses
        for tried, address in enumerate(others):
            share_s = (ends_s - now()) / (len(addresses) - tried)
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._network.connect_tcp(address, port, timeout=share_s)
        return await self._network.connect_tcp(last, port, timeout=ends_s - now())

    async def aclose(self) -> None:
        """Drop the connection, also one whose TLS handshake was cancelled and nobody else holds."""
        if self._raw:
            await self._raw.aclose()


class _Metered(httpcore.AsyncNetworkStream):
    """Ends an answer whose head does not end: h11 bounds one head, not a row of 1xx answers."""

    def __init__(self, inner: httpcore.AsyncNetworkStream, guard: CheckedBackend) -> None:
        self._inner = inner
        self._guard = guard

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self._guard.head_bytes_left is None:
            return await self._inner.read(max_bytes, timeout)
        if self._guard.head_bytes_left <= 0:
            raise httpcore.RemoteProtocolError(f"no answer within {_HEAD_BYTES} bytes")
        data = await self._inner.read(min(max_bytes, READ_BYTES), timeout)
        self._guard.head_bytes_left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the port's signature
    ) -> httpcore.AsyncNetworkStream:
        inner = await self._inner.start_tls(ssl_context, server_hostname, timeout)
        return _Metered(inner, self._guard)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _interleave(addresses: Sequence[str]) -> list[str]:
    """Alternate the address families, first answer first: a broken IPv6 must not use up all dials."""
    v6 = [address for address in addresses if ":" in address]
    v4 = [address for address in addresses if ":" not in address]
    pairs = zip_longest(v6, v4) if addresses[0] in v6 else zip_longest(v4, v6)
    return [address for pair in pairs for address in pair if address]


@contextlib.contextmanager
def map_errors(host: str) -> Iterator[None]:
    """Turn what httpcore, h11 and ssl raise into our errors. Cancellation passes."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        if isinstance(error.__cause__, ssl.SSLError):
            text = "TLS with the host of image_url failed; is its certificate valid?"
        else:
            text = "the host of image_url refused or dropped the connection"
        raise SourceConnectFailed(text, host=host) from error
    except httpcore.ProtocolError as error:
        text = "the host of image_url broke HTTP or ended before the image was complete"
        raise SourceProtocolError(text, host=host) from error
    except (httpcore.NetworkError, OSError) as error:
        text = "the host of image_url dropped the connection before the image was complete"
        raise SourceProtocolError(text, host=host) from error
