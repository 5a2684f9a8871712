"""Source images: from the cache if fresh, else from their origin, each URL fetched once at a time.

The cached object is the original bytes; it is judged and decoded like a fresh download on every use.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from cachetools import TTLCache

from retouch.editing.ports import Source
from retouch.errors import (
    BadInput,
    CacheReadFailed,
    DownloadFailed,
    EditError,
    SourceProtocolError,
    StorageError,
)
from retouch.images.decode import Decoded
from retouch.logs import event
from retouch.net.download import Download
from retouch.net.url import SourceUrl, parse_url, require_port
from retouch.sources.cache_entry import (
    CachedSource,
    is_fresh,
    read_stored,
    source_key,
    to_object_metadata,
)
from retouch.sources.data_url import decode_data_url, is_data_url
from retouch.sources.single_flight import SingleFlight
from retouch.storage.port import Store

T = TypeVar("T")
_log = logging.getLogger(__name__)
_MIN_FRESH_S, _MAX_FRESH_S = 60, 7 * 86400
_REMEMBERED = 4096
_REFUSED_FOR_S, _FAILED_FOR_S = 60.0, 10.0


class Fetch(Protocol):
    """Downloads from an origin; `fetch.Fetcher.fetch` is the one that does."""

    async def __call__(
        self, url: SourceUrl, *, timeout_s: float, etag: str | None, last_modified: str | None
    ) -> Download:
        """Return the body, or one that says the named version is still current."""
        ...


class Decode(Protocol):
    """Turns bytes into pixels; `decoder.Decoder.decode` is the one that does."""

    def __call__(self, body: bytes, *, timeout_s: float) -> Awaitable[Decoded]:
        """Return the decoded picture."""
        ...


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Limits and lifetimes of sources."""

    prefix: str = ""
    max_bytes: int = 26214400
    ttl_s: int = 3600
    timeout_s: float = 20.0
    allowed_hosts: frozenset[str] = frozenset()


class SourceLoader:
    """The `Sources` port over a store, an origin and a decoder."""

    def __init__(
        self,
        *,
        store: Store,
        fetch: Fetch,
        decode: Decode,
        settings: SourceSettings,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._decode = decode
        self._settings = settings
        self._now = now
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="source")
        self._flights: SingleFlight[Source] = SingleFlight()
        self._storing: dict[str, Source] = {}
        self._refused: TTLCache[str, EditError] = TTLCache(_REMEMBERED, _REFUSED_FOR_S, timer=now)
        self._failed: TTLCache[str, EditError] = TTLCache(_REMEMBERED, _FAILED_FOR_S, timer=now)
        self._down: TTLCache[str, bool] = TTLCache(_REMEMBERED, _FAILED_FOR_S, timer=now)
        # When an origin said "not modified", and for how long the copy is fresh from then on;
        # rewriting the object would only add a version.
        self._confirmed: TTLCache[str, tuple[float, int]] = TTLCache(
            _REMEMBERED, _MAX_FRESH_S, timer=now
        )

    def close(self) -> None:
        """Let running cache writes end and take no more."""
        self._threads.shutdown()

    async def identify(self, image_url: str) -> str:
        """Hash the canonical URL, or the bytes of a data: URL."""
        if is_data_url(image_url):
            return (await self._in_thread(partial(self._read_data_url, image_url))).id
        return _hash_url(parse_url(image_url))

    async def load(self, image_url: str, *, timeout_s: float) -> Source:
        """Return the picture; concurrent calls for one URL share one look-up and one download."""
        if is_data_url(image_url):
            original = await self._in_thread(partial(self._read_data_url, image_url))
            return await self._picture(original, fetch_ms=0.0, timeout_s=timeout_s)
        url = parse_url(image_url)
        require_port(url, allowed_hosts=self._settings.allowed_hosts)
        source_id = _hash_url(url)
        for remembered in (self._refused, self._failed):
            if (error := remembered.get(source_id)) is not None:
                raise _copy(error)
        if (kept := self._storing.get(source_id)) is not None:
            return replace(kept, cached=True, fetch_ms=0.0, decode_ms=0.0)
        return await self._flights.join(source_id, partial(self._load_url, url, source_id))

    def _read_data_url(self, image_url: str) -> CachedSource:
        body = decode_data_url(image_url, max_bytes=self._settings.max_bytes)
        return CachedSource(hashlib.sha256(body).hexdigest(), body)

    async def _load_url(self, url: SourceUrl, source_id: str) -> Source:
        began = time.perf_counter()
        try:
            original, storable = await self._get(url, source_id)
            fetch_ms = 1000 * (time.perf_counter() - began)
            timeout_s = self._settings.timeout_s
            source = await self._picture(original, fetch_ms=fetch_ms, timeout_s=timeout_s)
        except DownloadFailed as error:
            remembered = self._failed if error.is_transient else self._refused
            remembered[source_id] = _copy(error)
            raise
        except BadInput as error:
            self._refused[source_id] = _copy(error)
            raise
        if storable:
            self._keep(source_id, original, source)
        return source

    async def _picture(
        self, original: CachedSource, *, fetch_ms: float, timeout_s: float
    ) -> Source:
        began = time.perf_counter()
        decoded = await self._decode(original.body, timeout_s=timeout_s)
        stale_note = ("the origin could not be asked: an older copy was used",)
        return Source(
            id=original.id,
            image=decoded.image,
            width_px=decoded.width_px,
            height_px=decoded.height_px,
            format=decoded.format,
            size_bytes=len(original.body),
            cached=original.cached,
            stale=original.stale,
            fetch_ms=fetch_ms,
            decode_ms=1000 * (time.perf_counter() - began),
            notes=(*decoded.notes, *(stale_note if original.stale else ())),
        )

    async def _get(self, url: SourceUrl, source_id: str) -> tuple[CachedSource, bool]:
        """Return the bytes to use and whether they are new and may be cached."""
        cache_fault: StorageError | None = None
        cached: CachedSource | None = None
        try:
            cached = await self._read(source_id)
        except StorageError as error:
            cache_fault = error
            event(_log, "cache.failed", level=logging.WARNING, code=error.code, **error.context)
        if cached is not None:
            since_s, fresh_s = max(
                (cached.fetched_at_s, cached.fresh_s), self._confirmed.get(source_id, (0.0, 0))
            )
            if is_fresh(since_s, self._now(), fresh_s):
                event(_log, "cache.hit", bytes=len(cached.body))
                return cached, False
            if source_id in self._down:  # asked a moment ago: nobody need wait for it again
                return replace(cached, stale=True), False
        try:
            return await self._ask_origin(url, source_id, cached)
        except DownloadFailed as error:
            if cached is not None and error.is_transient:
                self._down[source_id] = True
                event(_log, "cache.stale_used", level=logging.WARNING, code=error.code)
                return replace(cached, stale=True), False
            if cache_fault is not None:
                message = f"the cache could not be read, and then: {error.message}"
                raise CacheReadFailed(message, details={"origin": error.code}) from error
            raise

    async def _ask_origin(
        self, url: SourceUrl, source_id: str, cached: CachedSource | None
    ) -> tuple[CachedSource, bool]:
        fetched = await self._fetch(
            url,
            timeout_s=self._settings.timeout_s,
            etag=cached.etag if cached else None,
            last_modified=cached.last_modified if cached else None,
        )
        now_s = self._now()
        if fetched.body is None:
            if cached is None:  # pragma: no cover - a fetch without validators refuses a 304
                raise SourceProtocolError("the origin says a version nobody has is current")
            fresh_s = cached.fresh_s if fetched.max_age_s is None else _bound(fetched.max_age_s)
            self._confirmed[source_id] = now_s, fresh_s
            event(_log, "cache.confirmed", bytes=len(cached.body))
            return cached, False
        event(_log, "source.fetched", host=url.host, bytes=len(fetched.body))
        max_age_s = self._settings.ttl_s if fetched.max_age_s is None else fetched.max_age_s
        original = CachedSource(
            id=source_id,
            body=fetched.body,
            fetched_at_s=now_s,
            fresh_s=_bound(max_age_s),
            etag=fetched.etag,
            last_modified=fetched.last_modified,
        )
        return original, fetched.storable

    async def _read(self, source_id: str) -> CachedSource | None:
        stored = await self._in_thread(
            partial(
                self._store.get,
                source_key(self._settings.prefix, source_id),
                max_bytes=self._settings.max_bytes,
                timeout_s=self._settings.timeout_s,
            )
        )
        return None if stored is None else read_stored(source_id, stored)

    def _keep(self, source_id: str, original: CachedSource, source: Source) -> None:
        """Write to the cache beside the edit; until it is there, the next caller gets `source`."""
        self._storing[source_id] = source
        put = partial(
            self._store.put,
            source_key(self._settings.prefix, source_id),
            original.body,
            content_type="application/octet-stream",
            metadata=to_object_metadata(original),
            timeout_s=self._settings.timeout_s,
        )
        running = asyncio.ensure_future(self._in_thread(put))

        def finish(done: asyncio.Future[None]) -> None:
            self._storing.pop(source_id, None)
            error = None if done.cancelled() else done.exception()
            if isinstance(error, EditError):
                event(_log, "cache.not_kept", level=logging.WARNING, code=error.code)
            elif error is not None:
                _log.error("cache.not_kept", exc_info=error)

        running.add_done_callback(finish)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, copy_context().run, call)


def _bound(fresh_s: int) -> int:
    return min(max(fresh_s, _MIN_FRESH_S), _MAX_FRESH_S)


def _hash_url(url: SourceUrl) -> str:
    return hashlib.sha256(url.canonical.encode()).hexdigest()


def _copy(error: EditError) -> EditError:
    """Return the error without its traceback and causes, so that it can be kept and raised again."""
    return type(error)(error.message, details=error.details, **error.context)
