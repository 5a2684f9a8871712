"""Open connections to public addresses only. The security border of all downloads."""

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import zip_longest

import h11
import httpcore

from retouch.errors import (
    SourceCertificateInvalid,
    SourceConnectFailed,
    SourceProtocolError,
    SourceUnreachable,
    SourceUnresolved,
)
from retouch.net.address import is_public
from retouch.net.limits import FetchLimits
from retouch.net.url import SourceUrl

Resolve = Callable[[str, int], Sequence[str]]

_TRANSIENT_EAI = frozenset({socket.EAI_AGAIN, socket.EAI_MEMORY, socket.EAI_SYSTEM})


def resolve_host(host: str, port: int) -> list[str]:
    """Look up every address of `host`. Blocks. Raises OSError for an unknown name."""
    # Bytes, because a str goes through CPython's IDNA 2003 codec, which has errors of its own.
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Resolver:
    """Runs a blocking `resolve` in threads, at most `max_lookups` at once. Belongs to one event loop.

    Each look-up has a daemon thread of its own. A pool would not do: a look-up cannot be stopped, and
    one that hangs after its caller has gone would keep the pool, and the process, from closing.
    """

    def __init__(self, resolve: Resolve, *, max_lookups: int) -> None:
        self._resolve = resolve
        self._free = asyncio.Semaphore(max_lookups)

    async def lookup(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of `host`. Raises what `resolve` raises."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        answer: Future[Sequence[str]] = Future()
        answer.set_running_or_notify_cancel()  # so that a cancelled caller does not cancel it

        def run() -> None:
            try:
                answer.set_result(self._resolve(host, port))
            except Exception as error:  # noqa: BLE001 - it is raised in the waiting task
                answer.set_exception(error)
            with contextlib.suppress(RuntimeError):  # the loop is closed and has no waiters
                loop.call_soon_threadsafe(self._free.release)

        try:
            threading.Thread(target=run, name="resolve", daemon=True).start()
        except RuntimeError:  # the machine has no thread left
            self._free.release()
            raise
        return await asyncio.wrap_future(answer)


@functools.cache
def default_ssl_context() -> ssl.SSLContext:
    """Return the process's context for TLS with public hosts: reading all root certificates is slow."""
    return httpcore.default_ssl_context()


class Connector:
    """Opens connections: one look-up, every address checked, a checked literal dialled.

    A name with any refused address is refused, so it does not matter which of them is dialled.
    """

    def __init__(
        self,
        limits: FetchLimits,
        *,
        resolve: Resolve = resolve_host,
        network: httpcore.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._resolver = Resolver(resolve, max_lookups=limits.max_lookups)
        self._network = network or httpcore.AnyIOBackend()
        self._ssl_context = ssl_context or default_ssl_context()

    @contextlib.asynccontextmanager
    async def connect(self, url: SourceUrl) -> AsyncIterator[httpcore.AsyncNetworkStream]:
        """Open a connection to the host of `url`, with TLS for https, and close it after use.

        Raises:
            SourceUnreachable: the name does not exist, or leads to an address that is not public.
            httpcore.ConnectError, httpcore.ConnectTimeout: no address took the connection, or TLS
                failed.
        """
        addresses = _interleave(await self._lookup(url))[: self._limits.max_dials]
        raw = await self._dial(addresses, url.port)
        # Closes it also where a TLS handshake is cancelled, after which httpcore leaves it open.
        async with contextlib.aclosing(raw):
            stream = raw
            if url.scheme == "https":
                stream = await raw.start_tls(
                    self._ssl_context, url.host, self._limits.connect_timeout_s
                )
            yield stream

    async def _lookup(self, url: SourceUrl) -> list[str]:
        try:
            addresses = list(dict.fromkeys(await self._resolver.lookup(url.host, url.port)))
        except (OSError, RuntimeError, ValueError) as error:
            is_final = isinstance(error, ValueError) or (
                isinstance(error, socket.gaierror) and error.errno not in _TRANSIENT_EAI
            )
            kind = SourceUnreachable if is_final else SourceUnresolved
            raise kind(host=url.host, reason="unknown" if is_final else "unresolved") from error
        is_exempt = url.host_port in self._limits.allowed_hosts
        if not addresses or not (is_exempt or all(map(is_public, addresses))):
            raise SourceUnreachable(host=url.host, reason="refused")
        return addresses

    async def _dial(self, addresses: list[str], port: int) -> httpcore.AsyncNetworkStream:
        """Try one address after the other, each with its share of the time that is left."""
        now = asyncio.get_running_loop().time
        ends_s = now() + self._limits.connect_timeout_s
        *others, last = addresses
        for tried, address in enumerate(others):
            share_s = (ends_s - now()) / (len(addresses) - tried)
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._network.connect_tcp(address, port, timeout=share_s)
        return await self._network.connect_tcp(last, port, timeout=ends_s - now())


def _interleave(addresses: Sequence[str]) -> list[str]:
    """Alternate the address families, first answer first: a broken IPv6 must not use up all dials."""
    v6 = [address for address in addresses if ":" in address]
    v4 = [address for address in addresses if ":" not in address]
    pairs = zip_longest(v6, v4) if addresses[0] in v6 else zip_longest(v4, v6)
    return [address for pair in pairs for address in pair if address]


@contextlib.contextmanager
def map_errors(host: str) -> Iterator[None]:
    """Map the exceptions of httpcore, h11 and ssl to ours. Cancellation passes."""
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            text = "the TLS certificate of the host of image_url is not valid"
            raise SourceCertificateInvalid(text, host=host) from error
        if isinstance(error.__cause__, ssl.SSLError):
            text = "TLS with the host of image_url failed"
        else:
            text = "the host of image_url refused or dropped the connection"
        raise SourceConnectFailed(text, host=host) from error
    except h11.ProtocolError as error:
        text = "the host of image_url broke HTTP or ended before the image was complete"
        raise SourceProtocolError(text, host=host) from error
    except (httpcore.NetworkError, OSError) as error:
        text = "the host of image_url dropped the connection before the image was complete"
        raise SourceProtocolError(text, host=host) from error
