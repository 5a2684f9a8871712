"""GET an untrusted URL: checked addresses, one deadline, a byte limit, redirects followed by hand.

No connection is reused, no proxy is taken from the environment and no body is decompressed.
"""

import asyncio
import contextlib
import io
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

import h11

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
from retouch.logs import event
from retouch.net import cache_headers
from retouch.net.connect import Connector, map_errors
from retouch.net.download_limiter import ConnectionLimiter, Place
from retouch.net.http1 import Exchange, Headers
from retouch.net.limits import FetchLimits
from retouch.net.url import SourceUrl, require_destination, resolve_redirect

_MIN_PIECE_BYTES = 256
_MANY_PIECES = 1024
_RETRY_PAUSE_S = 0.25
_log = logging.getLogger(__name__)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WITH_IMAGE = frozenset({200, 203})
"""203 comes from a proxy that changed the image, such as one that saves bytes."""
_RANGE = re.compile(r"bytes 0-(\d{1,10})/(\d{1,10})")
_TRANSIENT = frozenset({502, 503, 504})
# Any other name is none: S3 and its like return what an upload said, such as aws-chunked or utf-8.
_CODINGS = frozenset(
    ["gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress", "dcb", "dcz"]
)
_MAX_VALUE = 1024
_COOKIE = re.compile(rb"([-!#$%&'*+.^_`|~0-9a-zA-Z]+)=([^\x00-\x1f;]{0,4096})")
_MAX_COOKIES = 20
_HEADERS = [
    (b"Accept", b"image/*, */*;q=0.5"),
    (b"Accept-Encoding", b"identity"),
    (b"Connection", b"close"),
]


@dataclass(frozen=True, slots=True)
class Download:
    """An origin's response. `body` is None if it said that nothing changed (304).

    `etag` and `last_modified` are printable ASCII. `max_age_s` is how much longer the origin calls
    the body fresh, None where it does not say; `heuristic_s` is a guess for that case, from the
    date of its last change; `storable` whether a shared cache may keep it; `max_stale_s` for how long
    it may use it past its lifetime while the origin fails.
    """

    body: bytes | None = field(repr=False)
    etag: str | None
    last_modified: str | None
    max_age_s: int | None
    storable: bool
    heuristic_s: int | None = None
    max_stale_s: int = cache_headers.FOREVER_S


class _Chain:
    """The requests of one download: what they share, and what is left of the origin's time."""

    def __init__(self, place: Place, left_s: float, conditions: Headers) -> None:
        self.place = place
        self.conditions = conditions
        self._left_s = left_s
        self._cookies: dict[str, dict[bytes, bytes]] = {}

    def keep_cookies(self, host: str, response: h11.Response) -> None:
        """Keep the cookies that a redirect sets, for the same host in this chain."""
        kept = self._cookies.setdefault(host, {})
        for name, value in response.headers:
            pair = _COOKIE.match(value) if name == b"set-cookie" else None
            if pair and len(kept) < _MAX_COOKIES:
                kept[pair[1]] = pair[2].strip()

    def cookies(self, host: str) -> Headers:
        """Return the Cookie header for `host`, or none."""
        pairs = [name + b"=" + value for name, value in self._cookies.get(host, {}).items()]
        return [(b"Cookie", b"; ".join(pairs))] if pairs else []

    @contextlib.asynccontextmanager
    async def origin_time(self) -> AsyncIterator[None]:
        """Count what is inside as the origin's time. Raises TimeoutError when it is used up."""
        now = asyncio.get_running_loop().time
        began_s = now()
        try:
            async with self.place.origin_time(self._left_s):
                yield
        finally:
            self._left_s -= now() - began_s


class Downloader:
    """Downloads from public hosts. Belongs to one event loop."""

    def __init__(self, limits: FetchLimits, connector: Connector | None = None) -> None:
        self._limits = limits
        self._connections = ConnectionLimiter(per_host=limits.max_per_host)
        self._connector = connector or Connector(limits)

    async def fetch(
        self,
        url: SourceUrl,
        *,
        timeout_s: float,
        place: Place,
        etag: str | None = None,
        last_modified: str | None = None,
    ) -> Download:
        """GET `url` within the limits and `timeout_s` of the origin's time.

        Waiting for a connection that the limits allow is not the origin's time. With `etag` or
        `last_modified` the origin may answer that nothing changed.

        Raises:
            InvalidRequest: the port is not allowed.
            SourceTooLarge: the body is over `max_bytes`.
            DownloadFailed: any other failure of the origin, as its subclass `Source…`.
            Overloaded: the body did not fit beside those of other downloads, or made room for them.
        """
        require_destination(url, allowed_hosts=self._limits.allowed_hosts)
        chain = _Chain(place, timeout_s, _conditions(etag, last_modified))
        try:
            try:
                return await self._follow(url, chain)
            except SourceConnectFailed as error:
                if not error.is_transient:
                    raise
            except SourceServerError as error:
                if error.details["origin_status"] not in _TRANSIENT:
                    raise
            event(_log, "source.retried", level=logging.WARNING, host=url.host)
            await asyncio.sleep(_RETRY_PAUSE_S)
            return await self._follow(url, chain)
        except TimeoutError as error:
            text = f"the image did not arrive within {timeout_s:g} s (SOURCE_TIMEOUT_SECONDS)"
            raise SourceTimedOut(text, host=url.host) from error

    async def _follow(self, url: SourceUrl, chain: _Chain) -> Download:
        for _ in range(self._limits.max_redirects + 1):
            answer = await self._get(url, chain)
            if isinstance(answer, Download):
                return answer
            url = answer
        text = f"image_url redirects more than {self._limits.max_redirects} times"
        raise SourceRedirectError(text, host=url.host)

    async def _get(self, url: SourceUrl, chain: _Chain) -> Download | SourceUrl:
        """Make one request on a connection of its own; return the download or the next URL."""
        headers = [
            (b"Host", url.authority.encode()),
            (b"User-Agent", self._limits.user_agent.encode()),
            *_HEADERS,
            *chain.conditions,
            *chain.cookies(url.host),
        ]
        async with self._connections.acquire(url.host), chain.origin_time():
            with map_errors(url.host):
                async with self._connector.connect(url) as stream:
                    exchange = Exchange(stream)
                    response = await exchange.send("GET", url.target, headers)
                    if response.status_code in _REDIRECTS:
                        chain.keep_cookies(url.host, response)
                        return self._redirect(url, response)
                    return await self._read_response(url.host, exchange, response, chain)

    async def _read_response(
        self, host: str, exchange: Exchange, response: h11.Response, chain: _Chain
    ) -> Download:
        body = None
        if response.status_code in _WITH_IMAGE or _is_whole(response):
            body = await self._read_body(host, exchange, response, chain.place)
        elif not (response.status_code == HTTPStatus.NOT_MODIFIED and chain.conditions):
            raise _status_error(response.status_code, host)
        header = partial(_header, response)
        max_age_s, storable = cache_headers.read_cache_headers(header)
        return Download(
            body=body,
            etag=_plain(header(b"etag")),
            last_modified=_plain(header(b"last-modified")),
            max_age_s=max_age_s,
            storable=storable,
            heuristic_s=cache_headers.heuristic_lifetime_s(header),
            max_stale_s=cache_headers.read_max_stale_s(header),
        )

    def _redirect(self, url: SourceUrl, response: h11.Response) -> SourceUrl:
        location = _header(response, b"location", errors="surrogateescape")
        if not location:
            raise SourceRedirectError("image_url redirects to nowhere", host=url.host)
        try:
            target = resolve_redirect(url, location)
            require_destination(target, allowed_hosts=self._limits.allowed_hosts)
        except (ValueError, InvalidRequest) as error:
            reason = str(error).removeprefix("image_url: ")
            text = f"image_url redirects to a URL that may not be fetched: {reason}"
            raise SourceRedirectError(text, host=url.host) from error
        return target

    async def _read_body(
        self, host: str, exchange: Exchange, response: h11.Response, place: Place
    ) -> bytes:
        """Read the body and count its bytes; hold no more than `max_bytes` and one read."""
        limit = self._limits.max_bytes
        codings = _header(response, b"content-encoding").lower().split(",")
        if _CODINGS.intersection(map(str.strip, codings)):
            text = "the host of image_url compresses the image although asked not to"
            raise SourceEncoded(text, host=host)
        declared = int(_header(response, b"content-length") or limit)  # h11 checked its form
        if declared > limit:
            raise _too_large(limit, host)
        # Allocated at full size: a buffer that grows may be copied. The kernel backs a page when it
        # is written, and `getvalue` hands the buffer over without a copy.
        body = io.BytesIO(bytes(declared))
        pieces = size = 0
        while piece := await exchange.read():
            pieces += 1
            size += len(piece)
            if size > limit:
                raise _too_large(limit, host)
            if pieces > _MANY_PIECES and size < pieces * _MIN_PIECE_BYTES:
                raise SourceProtocolError("the image comes in needlessly small pieces", host=host)
            place.hold(len(piece))
            body.write(piece)
        body.truncate()
        return body.getvalue()


def _too_large(limit: int, host: str) -> SourceTooLarge:
    # Not a local of `_read_body`: an error in a frame of its own traceback is a reference cycle,
    # which would keep the body until garbage is collected.
    return SourceTooLarge(f"the image is over {limit} bytes (MAX_IMAGE_BYTES)", host=host)


def _is_whole(response: h11.Response) -> bool:
    """Whether it is partial by its status, although nobody asked for a part, and has all the bytes."""
    found = _RANGE.fullmatch(_header(response, b"content-range"))
    is_all = found is not None and int(found[1]) + 1 == int(found[2])
    return is_all and response.status_code == HTTPStatus.PARTIAL_CONTENT


def _status_error(status: int, host: str) -> DownloadFailed:
    failing = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
    kind = SourceServerError if failing else SourceStatusError
    text = f"the host of image_url answered {status} instead of an image"
    return kind(text, details={"origin_status": status}, host=host)


def _conditions(etag: str | None, last_modified: str | None) -> Headers:
    """Build the conditional headers, without values that no `Download` could have."""
    values = ((b"If-None-Match", etag), (b"If-Modified-Since", last_modified))
    return [(name, value.encode()) for name, text in values if (value := _plain(text or ""))]


def _header(response: h11.Response, name: bytes, *, errors: str = "replace") -> str:
    """Join every value of a header; empty if there is none."""
    values = [value for key, value in response.headers if key == name]
    return b", ".join(values).decode("utf-8", errors)


def _plain(text: str) -> str | None:
    return text if 0 < len(text) <= _MAX_VALUE and text.isascii() and text.isprintable() else None
