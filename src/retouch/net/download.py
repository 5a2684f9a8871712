"""GET a stranger's URL: checked address, one deadline, a byte limit, redirects by hand.

Nothing is kept between fetches, no proxy is taken from the environment and no body is decompressed.
"""

import asyncio
import contextlib
import io
import re
import ssl
from dataclasses import dataclass, field
from http import HTTPStatus

import httpcore

from retouch import __version__
from retouch.errors import (
    DownloadFailed,
    InvalidRequest,
    SourceConnectFailed,
    SourceEncoded,
    SourceProtocolError,
    SourceRedirectError,
    SourceServerError,
    SourceStatusError,
    SourceTimedOut,
    SourceTooLarge,
)
from retouch.net.address import is_public
from retouch.net.connect import CheckedBackend, Lookups, Resolve, map_errors, resolve_host
from retouch.net.limits import Budget, ConnectionLimiter
from retouch.net.sockets import Sockets
from retouch.net.url import SourceUrl, require_port, resolve_redirect

Headers = list[tuple[bytes, bytes]]

_MIN_PIECE_BYTES = 256
_MANY_PIECES = 1024
_RETRY_PAUSE_S = 0.25
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_TRANSIENT = frozenset({502, 503, 504})
_DIRECTIVE = re.compile(r'([a-z0-9_-]+)(?:\s*=\s*(?:"([^"]*)"|([^\s,]*)))?')
_MAX_VALUE = 1024
_HEADERS = [
    (b"User-Agent", f"retouch/{__version__}".encode()),
    (b"Accept", b"image/*, */*;q=0.5"),
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
]
_FOREVER_S = 2**31  # RFC 9111, section 1.2.2


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one fetch and of all together.

    `allowed_hosts` are exact lower-case `host:port` entries exempt from the address and port rule.
    `max_fetches` bounds sockets; what bounds memory is `max_buffered_bytes`, over all bodies that
    are still arriving. `max_lookups` is well over `max_fetches`, because a look-up that hangs goes
    on after its fetch has ended, until the system's resolver gives up.
    """

    max_bytes: int = 26_214_400
    timeout_s: float = 20.0
    connect_timeout_s: float = 5.0
    max_redirects: int = 3
    max_dials: int = 4
    max_fetches: int = 256
    max_fetches_per_host: int = 2
    max_lookups: int = 512
    max_buffered_bytes: int = 8 * 26_214_400
    allowed_hosts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Download:
    """What an origin sent. `body` is None if it said that nothing changed (304).

    `etag` and `last_modified` are printable ASCII; `content_type` is a hint only. `max_age_s` is how
    much longer the origin calls it fresh, None where it does not say.
    """

    body: bytes | None = field(repr=False)
    etag: str | None
    last_modified: str | None
    content_type: str | None
    max_age_s: int | None
    storable: bool


def parse_cache_control(value: str, *, age: str = "") -> tuple[int | None, bool]:
    """Read how long a shared cache may keep an answer, in seconds, and whether it may at all.

    What cannot be read counts as stale (RFC 9111, section 4.2.1).

    >>> parse_cache_control("public, max-age=600", age="60")
    (540, True)
    >>> parse_cache_control("private")
    (None, False)
    """
    said: dict[str, str] = {}
    for name, quoted, plain in _DIRECTIVE.findall(value.lower()):
        said.setdefault(name, quoted or plain)
    storable = said.keys().isdisjoint({"no-store", "private"})
    if "no-cache" in said:
        return 0, storable
    lifetime = said.get("s-maxage", said.get("max-age"))
    if lifetime is None:
        return None, storable
    return max(0, _read_seconds(lifetime) - _read_seconds(age)), storable


class Downloader:
    """Fetches images from anywhere public. Belongs to one event loop."""

    def __init__(
        self,
        limits: FetchLimits,
        *,
        resolve: Resolve = resolve_host,
        network: httpcore.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._network = network or Sockets()
        self._ssl_context = ssl_context or httpcore.default_ssl_context()
        self._slots = ConnectionLimiter(limits.max_fetches, per_host=limits.max_fetches_per_host)
        self._budget = Budget(max(limits.max_buffered_bytes, limits.max_bytes))
        self._lookup = Lookups(resolve, max_lookups=limits.max_lookups)

    async def fetch(
        self,
        url: SourceUrl,
        *,
        timeout_s: float,
        etag: str | None = None,
        last_modified: str | None = None,
    ) -> Download:
        """GET `url` within `timeout_s` and the limits, waiting for a place included.

        With `etag` or `last_modified` the origin may answer that nothing changed.

        Raises:
            InvalidRequest: the port is not allowed.
            SourceTooLarge: the body is over `max_bytes`.
            DownloadFailed: anything else the origin does; each subclass `Source…` has its case.
        """
        conditions = _conditions(etag, last_modified)
        limit_s = min(timeout_s, self._limits.timeout_s)
        require_port(url, allowed_hosts=self._limits.allowed_hosts)
        try:
            async with asyncio.timeout(limit_s) as deadline:
                try:
                    return await self._follow(url, conditions, deadline)
                except SourceConnectFailed:
                    pass
                except SourceServerError as error:
                    if error.details["origin_status"] not in _TRANSIENT:
                        raise
                await asyncio.sleep(_RETRY_PAUSE_S)
                return await self._follow(url, conditions, deadline)
        except TimeoutError as error:
            text = f"the image did not arrive within at most {limit_s:g} s (SOURCE_TIMEOUT_SECONDS)"
            raise SourceTimedOut(text, host=url.host) from error

    async def _follow(
        self, url: SourceUrl, conditions: Headers, deadline: asyncio.Timeout
    ) -> Download:
        for _ in range(self._limits.max_redirects + 1):
            answer = await self._get(url, conditions, deadline)
            if isinstance(answer, Download):
                return answer
            url = answer
        text = f"image_url redirects more than {self._limits.max_redirects} times"
        raise SourceRedirectError(text, host=url.host)

    async def _get(
        self, url: SourceUrl, conditions: Headers, deadline: asyncio.Timeout
    ) -> Download | SourceUrl:
        """Make one request on a connection of its own."""
        limits = self._limits
        guard = CheckedBackend(
            self._network,
            self._lookup,
            (lambda _: True) if url.host_port in limits.allowed_hosts else is_public,
            max_dials=limits.max_dials,
            timeout_s=limits.connect_timeout_s,
        )
        target = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        connection = httpcore.AsyncHTTPConnection(
            target.origin, self._ssl_context, network_backend=guard
        )
        headers = [(b"Host", url.authority.encode()), *_HEADERS, *conditions]
        timeouts = {"timeout": {"connect": limits.connect_timeout_s}}
        async with self._slots.hold(url.host), contextlib.aclosing(guard):
            with map_errors(url.host):
                async with connection.stream(
                    "GET", target, headers=headers, extensions=timeouts
                ) as response:
                    guard.head_bytes_left = None
                    return await self._take(url, response, bool(conditions), deadline)

    async def _take(
        self, url: SourceUrl, response: httpcore.Response, asked: bool, deadline: asyncio.Timeout
    ) -> Download | SourceUrl:
        if response.status in _REDIRECTS:
            return self._redirect(url, response)
        body = None
        if response.status == HTTPStatus.OK:
            body = await self._read(url.host, response, deadline)
        elif not (response.status == HTTPStatus.NOT_MODIFIED and asked):
            raise _refusal(response.status, url.host)
        max_age_s, storable = parse_cache_control(
            _header(response, b"cache-control"), age=_header(response, b"age")
        )
        return Download(
            body=body,
            etag=_plain(_header(response, b"etag")),
            last_modified=_plain(_header(response, b"last-modified")),
            content_type=_plain(_header(response, b"content-type")),
            max_age_s=max_age_s,
            storable=storable,
        )

    def _redirect(self, url: SourceUrl, response: httpcore.Response) -> SourceUrl:
        location = _header(response, b"location")
        if not location:
            raise SourceRedirectError("image_url redirects to nowhere", host=url.host)
        try:
            target = resolve_redirect(url, location)
            require_port(target, allowed_hosts=self._limits.allowed_hosts)
        except (ValueError, InvalidRequest) as error:
            reason = str(error).removeprefix("image_url: ")
            text = f"image_url redirects to a URL that may not be fetched: {reason}"
            raise SourceRedirectError(text, host=url.host) from error
        return target

    async def _read(
        self, host: str, response: httpcore.Response, deadline: asyncio.Timeout
    ) -> bytes:
        """Read the body as it comes, counting. Nothing is held beyond `max_bytes` and one read."""
        limit = self._limits.max_bytes
        if _header(response, b"content-encoding").lower() not in {"", "identity"}:
            text = "the host of image_url compresses the image although asked not to"
            raise SourceEncoded(text, host=host)
        told = int(_header(response, b"content-length") or limit)  # h11 checked that it is one
        if told > limit:
            raise _too_large(limit, host)
        # As large as it may get: a buffer that grows may be copied. It becomes real page by page as
        # it is written, and `getvalue` hands it over.
        body = io.BytesIO(bytes(told))
        pieces = size = 0
        try:
            async for piece in response.aiter_stream():
                pieces += 1
                size += len(piece)
                if size > limit:
                    raise _too_large(limit, host)
                if pieces > _MANY_PIECES and size < pieces * _MIN_PIECE_BYTES:
                    raise SourceProtocolError(
                        "the image comes in needlessly small pieces", host=host
                    )
                self._budget.add(deadline, len(piece))
                body.write(piece)
        finally:
            self._budget.release(deadline)
        body.truncate()
        return body.getvalue()


def _too_large(limit: int, host: str) -> SourceTooLarge:
    # No local of `_read`: an error in a frame of its own traceback is a cycle that keeps the body.
    return SourceTooLarge(f"the image is over {limit} bytes (MAX_IMAGE_BYTES)", host=host)


def _refusal(status: int, host: str) -> DownloadFailed:
    failing = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    kind = SourceServerError if failing else SourceStatusError
    text = f"the host of image_url answered {status} instead of an image"
    return kind(text, details={"origin_status": status}, host=host)


def _conditions(etag: str | None, last_modified: str | None) -> Headers:
    """Build the conditional headers, dropping values that could not have come from `Fetched`."""
    asked = ((b"If-None-Match", etag), (b"If-Modified-Since", last_modified))
    return [(name, value.encode()) for name, text in asked if (value := _plain(text or ""))]


def _header(response: httpcore.Response, name: bytes) -> str:
    """Join every value of a header; empty if there is none."""
    values = [value for key, value in response.headers if key.lower() == name]
    return b", ".join(values).decode("utf-8", "replace")


def _plain(text: str) -> str | None:
    return text if 0 < len(text) <= _MAX_VALUE and text.isascii() and text.isprintable() else None


def _read_seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        return 0
    return min(int(text[:20]), _FOREVER_S)
