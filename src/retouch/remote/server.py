"""Requests to the server that ENGINE_URL names, each over a connection of its own.

It is the operator's own, so its address may be internal. Nothing is decompressed or redirected.
"""

import ssl
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Self

import h11
import httpcore

from retouch.errors import DownloadFailed, EngineUnavailable, ModelError
from retouch.net.connect import Connector, default_ssl_context
from retouch.net.http1 import Exchange, Headers
from retouch.net.limits import FetchLimits
from retouch.net.url import SourceUrl, parse_url

_CONNECT_TIMEOUT_S = 5.0


class NotConnected(EngineUnavailable):
    """No connection was made, so that the server cannot have begun the edit."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: its status and its body."""

    status: int
    body: bytes

    @property
    def is_busy(self) -> bool:
        """Whether the server took nothing on, and may do so later."""
        return self.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class Server:
    """The address of the server, without the `/v1` of its routes, and the key for it, empty for none."""

    url: SourceUrl
    key: str = field(default="", repr=False)
    ssl_context: ssl.SSLContext = field(default_factory=default_ssl_context, repr=False)

    @classmethod
    def parse(cls, url: str, *, key: str = "") -> Self:
        """Return the server at `url`, which may end in `/v1` or its route of edits.

        Raises:
            ModelError: it is not a URL.

        >>> Server.parse("http://vllm:8091/v1/images/edits").url.canonical
        'http://vllm:8091/'
        """
        base = url.rstrip("/").removesuffix("/images/edits").removesuffix("/v1")
        try:
            return cls(parse_url(base), key)
        except ValueError as error:
            raise ModelError(f"ENGINE_URL: {error}") from error

    async def get(self, path: str, *, max_bytes: int) -> Answer:
        """GET `path`. Raises as `send` does."""
        return await self.send("GET", path, [], b"", max_bytes=max_bytes)

    async def post(self, path: str, body: bytes, content_type: str, *, max_bytes: int) -> Answer:
        """POST `body` to `path`. Raises as `send` does."""
        fields = [
            (b"Content-Type", content_type.encode()),
            (b"Content-Length", str(len(body)).encode()),
        ]
        return await self.send("POST", path, fields, body, max_bytes=max_bytes)

    async def send(
        self,
        method: str,
        path: str,
        fields: Sequence[tuple[bytes, bytes]],
        body: bytes,
        *,
        max_bytes: int,
    ) -> Answer:
        """Send a request and return the answer. Cancelling closes the connection.

        Raises:
            NotConnected: the server takes no connection.
            EngineUnavailable: the connection broke before the end of the answer.
            ModelError: the answer is over `max_bytes`.
        """
        async with AsyncExitStack() as exits:
            exchange = await self._connect(exits)
            try:
                head = await exchange.send(
                    method,
                    self.url.target.rstrip("/") + path,
                    [*self._headers(), *fields],
                    body,
                )
                return Answer(head.status_code, await _read(exchange, max_bytes))
            except (h11.ProtocolError, httpcore.NetworkError, OSError) as error:
                raise EngineUnavailable("the engine dropped the connection") from error

    async def _connect(self, exits: AsyncExitStack) -> Exchange:
        limits = FetchLimits(
            connect_timeout_s=_CONNECT_TIMEOUT_S, allowed_hosts=frozenset({self.url.host_port})
        )
        # A connector belongs to one event loop, and each edit has one of its own.
        connector = Connector(limits, ssl_context=self.ssl_context)
        try:
            return Exchange(await exits.enter_async_context(connector.connect(self.url)))
        except (DownloadFailed, httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
            raise NotConnected("the engine cannot be reached") from error

    def _headers(self) -> Headers:
        key = [(b"Authorization", b"Bearer " + self.key.encode())] if self.key else []
        return [
            (b"Host", self.url.authority.encode()),
            (b"Accept", b"application/json"),
            (b"Connection", b"close"),
            *key,
        ]


async def _read(exchange: Exchange, max_bytes: int) -> bytes:
    body = bytearray()
    while piece := await exchange.read():
        body += piece
        if len(body) > max_bytes:
            raise ModelError(f"the engine's answer is over {max_bytes} bytes")
    return bytes(body)
