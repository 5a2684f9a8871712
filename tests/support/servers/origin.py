"""A hostile origin on 127.0.0.1, and the resolver and network that lead a downloader to it.

An `Origin` reads the head of a request and then runs its script on the raw socket.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import httpcore

from retouch.net.connect import Connector
from retouch.net.download import Download, Downloader
from retouch.net.download_limiter import DownloadLimiter
from retouch.net.limits import FetchLimits
from retouch.net.url import SourceUrl, parse_url

Script = Callable[["Exchange"], Awaitable[None]]


class Exchange:
    """One request, and ways to answer it."""

    def __init__(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self._writer = writer

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        linger_none = struct.pack("ii", 1, 0)
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
        self._writer.transport.abort()


class Origin:
    """A server that runs its script for each connection; `requests` holds the heads."""

    def __init__(self, script: Script, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._ssl_context = ssl_context
        self._tasks: set[asyncio.Task[None]] = set()
        self.requests: list[bytes] = []
        self.port = 0

    @property
    def open(self) -> int:
        """How many connections are being served."""
        return len(self._tasks)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", 0, ssl=self._ssl_context, limit=1 << 20, backlog=512
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head)
            script = asyncio.ensure_future(self._script(Exchange(head, writer)))
            gone = asyncio.create_task(reader.read())
            try:
                await asyncio.wait({script, gone}, return_when=asyncio.FIRST_COMPLETED)
                writer.close()
                await writer.wait_closed()  # until what was written has been sent
            finally:
                script.cancel()
                gone.cancel()
                await asyncio.gather(script, gone, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client disconnected before it sent a request
        finally:
            writer.transport.abort()


def answer(
    body: bytes = b"", *, status: int = 200, headers: Sequence[str] = (), length: int | None = None
) -> Script:
    """Send a whole response; `length` is a false Content-Length, a negative one leaves it out."""
    said = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} -", *headers]
    if said >= 0:
        lines.append(f"Content-Length: {said}")
    head = "".join(f"{line}\r\n" for line in lines) + "\r\n"

    async def script(exchange: Exchange) -> None:
        await exchange.send(head.encode() + body)

    return script


def redirect(location: str, *, status: int = 302) -> Script:
    return answer(status=status, headers=[f"Location: {location}"])


def say(data: bytes, *, again: bytes = b"", every_s: float = 0.0) -> Script:
    """Send `data`, then `again` forever, or nothing more if there is no `again`."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(data)
        while again:
            await exchange.send(again)
            await asyncio.sleep(every_s)
        await asyncio.Event().wait()

    return script


def reset_after(data: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.send(data)
        await asyncio.sleep(0.05)  # so that the client reads the data before the RST discards it
        exchange.reset()

    return script


def in_turn(*scripts: Script) -> Script:
    """Run the next script on each request."""
    left = iter(scripts)

    async def script(exchange: Exchange) -> None:
        await next(left)(exchange)

    return script


def by_path(scripts: Mapping[str, Script]) -> Script:
    async def script(exchange: Exchange) -> None:
        await scripts[exchange.target](exchange)

    return script


class Names:
    """A resolver. Each look-up of a name takes its next answer; the last one repeats."""

    def __init__(self, answers: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self._answers = {host: list(each) for host, each in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self._answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        answers = self._answers[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class Detour(httpcore.AsyncNetworkBackend):
    """Connects public addresses to ports of 127.0.0.1, and records what was dialled."""

    def __init__(self, ports: Mapping[tuple[str, int], int]) -> None:
        self._ports = ports
        self._network = httpcore.AnyIOBackend()
        self.dialled: list[str] = []

    async def connect_tcp(
        self, host: str, port: int, *args: Any, **options: Any
    ) -> httpcore.AsyncNetworkStream:
        self.dialled.append(host)
        if (host, port) not in self._ports:
            raise httpcore.ConnectError("nobody listens there")
        return await self._network.connect_tcp(
            "127.0.0.1", self._ports[host, port], *args, **options
        )


async def fetch_alone(fetcher: Downloader, url: SourceUrl, **options: Any) -> Download:
    """Fetch with a place of a limiter that bounds no other download."""
    with DownloadLimiter().admit() as place:
        return await fetcher.fetch(url, place=place, **options)


@dataclass(frozen=True)
class Internet:
    """Hosts with a public address each, which leads to an origin on 127.0.0.1."""

    fetcher: Downloader
    names: Names
    detour: Detour
    limiter: DownloadLimiter = field(default_factory=lambda: DownloadLimiter(max_downloads=1000))

    async def get(self, url: str, **options: Any) -> Download:
        with self.limiter.admit() as place:
            return await self.fetcher.fetch(
                parse_url(url), place=place, **{"timeout_s": 20, **options}
            )


@contextlib.asynccontextmanager
async def internet(
    scripts: Mapping[str, Script],
    *,
    limits: FetchLimits,
    names: Mapping[str, Sequence[Sequence[str]]] | None = None,
    server_tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
    limiter: DownloadLimiter | None = None,
) -> AsyncIterator[tuple[Internet, dict[str, Origin]]]:
    async with contextlib.AsyncExitStack() as stack:
        origins = {
            host: await stack.enter_async_context(Origin(script, ssl_context=server_tls))
            for host, script in scripts.items()
        }
        addresses = {host: f"93.184.{n // 250}.{n % 250 + 1}" for n, host in enumerate(origins)}
        answers = {host: [[address]] for host, address in addresses.items()}
        detour = Detour(
            {
                (addresses[host], port): origin.port
                for host, origin in origins.items()
                for port in (80, 443)
            }
        )
        resolver = Names({**answers, **(names or {})})
        fetcher = Downloader(
            limits, Connector(limits, resolve=resolver, network=detour, ssl_context=client_tls)
        )
        limiter = limiter or DownloadLimiter(max_downloads=1000)
        yield Internet(fetcher, resolver, detour, limiter), origins


async def until(condition: Callable[[], object], *, within_s: float = 30) -> None:
    """Wait until the condition is true."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def plain_server(accept: Callable[..., Any], limits: FetchLimits) -> AsyncIterator[Internet]:
    """A server at a.example that runs `accept` on each connection."""
    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    detour = Detour({("93.184.0.1", 443): server.sockets[0].getsockname()[1]})
    names = Names({"a.example": [["93.184.0.1"]]})
    fetcher = Downloader(limits, Connector(limits, resolve=names, network=detour))
    async with server:
        yield Internet(fetcher, names, detour)
