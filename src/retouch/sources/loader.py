"""Load source images: from the cache if fresh, else from their origin, each URL fetched once at a time.

The cache holds the bytes as the origin sent them; they are decoded anew on every use.
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

from cachetools import TLRUCache, TTLCache

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
from retouch.net.download_limiter import DownloadLimiter, Place
from retouch.net.url import SourceUrl, parse_url
from retouch.sources.cache_entry import (
    CachedSource,
    is_fresh,
    read_stored,
    to_object_metadata,
)
from retouch.sources.data_url import decode_data_url, is_data_url
from retouch.sources.single_flight import SingleFlight
from retouch.storage.keys import source_key
from retouch.storage.port import Store

T = TypeVar("T")
_log = logging.getLogger(__name__)
_MIN_FRESH_S, _MAX_FRESH_S = 60, 7 * 86400
_REMEMBERED = 4096
_MAX_PENDING_WRITES = 16
_REFUSED_FOR_S, _TRANSIENT_FOR_S = 60.0, 10.0
_STALE_NOTE = "the origin could not be asked: an older copy was used"


class Fetch(Protocol):
    """Downloads from an origin; `Downloader.fetch` implements it."""

    async def __call__(
        self,
        url: SourceUrl,
        *,
        timeout_s: float,
        place: Place,
        etag: str | None,
        last_modified: str | None,
    ) -> Download:
        """Return the body, or none if the version with these validators is still current."""
        ...


class Decode(Protocol):
    """Decodes an image file; `Decoder.decode` implements it."""

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


@dataclass(frozen=True, slots=True)
class _Failure:
    """A recent failure of a source. `has_copy`: a stale copy answers while it is remembered."""

    error: EditError
    for_s: float
    has_copy: bool = False


class SourceLoader:
    """The `Sources` port over a store, an origin and a decoder. Belongs to one event loop."""

    def __init__(
        self,
        *,
        store: Store,
        fetch: Fetch,
        decode: Decode,
        limiter: DownloadLimiter,
        settings: SourceSettings,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._fetch = fetch
        self._decode = decode
        self._settings = settings
        self._now = now
        self._limiter = limiter
        # Apart, so that slow cache writes delay no cache read and a slow store no data: URL. Places
        # bound what waits for the first two, `_MAX_PENDING_WRITES` what waits for the third.
        self._compute = ThreadPoolExecutor(2, thread_name_prefix="source-compute")
        self._reads = ThreadPoolExecutor(8, thread_name_prefix="source-read")
        self._writes = ThreadPoolExecutor(4, thread_name_prefix="source-write")
        self._loads: SingleFlight[Source] = SingleFlight()
        self._storing: dict[str, Source] = {}
        self._failures: TLRUCache[str, _Failure] = TLRUCache(
            _REMEMBERED, ttu=lambda _, failure, now_s: now_s + failure.for_s, timer=now
        )
        # When an origin said "not modified", and for how long the copy is fresh from then on.
        # Rewriting the object would add a version in a versioned bucket.
        self._confirmed: TTLCache[str, tuple[float, int]] = TTLCache(
            _REMEMBERED, _MAX_FRESH_S, timer=now
        )

    @property
    def pending_writes(self) -> int:
        """How many sources are being written to the cache."""
        return len(self._storing)

    def close(self) -> None:
        """Let running cache writes end and take no more. Blocks."""
        for threads in (self._compute, self._reads, self._writes):
            threads.shutdown()

    async def source_id(self, image_url: str) -> str:
        """Hash the canonical URL, or the bytes of a data: URL."""
        if is_data_url(image_url):
            return (await self._read_data_url(image_url)).sha256
        return _hash_url(parse_url(image_url))

    async def load(self, image_url: str, *, timeout_s: float) -> Source:
        """Return the picture; concurrent calls for one URL share one cache read and one download."""
        if is_data_url(image_url):
            with self._limiter.admit() as place:
                found = await self._read_data_url(image_url)
                place.hold(len(found.body))
                return await self._decode_source(
                    found.sha256, found, fetch_ms=0.0, timeout_s=timeout_s
                )
        url = parse_url(image_url)
        source_id = _hash_url(url)
        failure = self._failures.get(source_id)
        if failure is not None and not failure.has_copy:
            raise _copy(failure.error)
        if (source := self._storing.get(source_id)) is not None:
            return replace(source, cached=True, fetch_ms=0.0, decode_ms=0.0)
        return await self._loads.do(source_id, partial(self._load_url, url, source_id))

    async def _read_data_url(self, image_url: str) -> CachedSource:
        def read() -> CachedSource:
            body = decode_data_url(image_url, max_bytes=self._settings.max_bytes)
            return CachedSource(body, _hash(body))

        return await _in_thread(self._compute, read)

    async def _load_url(self, url: SourceUrl, source_id: str) -> Source:
        began = time.perf_counter()
        try:
            with self._limiter.admit() as place:
                found = await self._find(url, source_id, place)
                fetch_ms = 1000 * (time.perf_counter() - began)
                source = await self._decode_source(
                    source_id, found, fetch_ms=fetch_ms, timeout_s=self._settings.timeout_s
                )
        except (BadInput, DownloadFailed) as error:
            is_transient = isinstance(error, DownloadFailed) and error.is_transient
            for_s = _TRANSIENT_FOR_S if is_transient else _REFUSED_FOR_S
            self._failures[source_id] = _Failure(_copy(error), for_s)
            raise
        if found.storable:
            self._keep(source_id, found, source)
        return source

    async def _decode_source(
        self, source_id: str, found: CachedSource, *, fetch_ms: float, timeout_s: float
    ) -> Source:
        began = time.perf_counter()
        decoded = await self._decode(found.body, timeout_s=timeout_s)
        return Source(
            id=source_id,
            content_sha256=found.sha256,
            image=decoded.image,
            width_px=decoded.width_px,
            height_px=decoded.height_px,
            format=decoded.format,
            size_bytes=len(found.body),
            cached=found.cached,
            stale=found.stale,
            fetch_ms=fetch_ms,
            decode_ms=1000 * (time.perf_counter() - began),
            notes=(*decoded.notes, *([_STALE_NOTE] if found.stale else [])),
        )

    async def _find(self, url: SourceUrl, source_id: str, place: Place) -> CachedSource:
        """Return the bytes to use: a fresh copy, what the origin sends, or a stale copy."""
        cache_fault: StorageError | None = None
        cached: CachedSource | None = None
        try:
            cached = await self._read_cache(source_id)
        except StorageError as error:
            cache_fault = error
            event(_log, "cache.failed", level=logging.WARNING, code=error.code, **error.context)
        if cached is not None:
            place.hold(len(cached.body))
            since_s, fresh_s = max(
                (cached.fetched_at_s, cached.fresh_s), self._confirmed.get(source_id, (0.0, 0))
            )
            if is_fresh(since_s, self._now(), fresh_s):
                event(_log, "cache.hit", bytes=len(cached.body))
                return cached
            if source_id in self._failures:  # the origin failed a moment ago: do not wait again
                return replace(cached, stale=True)
        try:
            return await self._ask_origin(url, source_id, cached, place)
        except DownloadFailed as error:
            if cached is not None and error.is_transient:
                self._failures[source_id] = _Failure(_copy(error), _TRANSIENT_FOR_S, has_copy=True)
                event(_log, "cache.stale_used", level=logging.WARNING, code=error.code)
                return replace(cached, stale=True)
            if cache_fault is not None:
                message = f"the cache could not be read, and then: {error.message}"
                raise CacheReadFailed(message, details={"origin": error.code}) from error
            raise

    async def _ask_origin(
        self, url: SourceUrl, source_id: str, cached: CachedSource | None, place: Place
    ) -> CachedSource:
        download = await self._fetch(
            url,
            timeout_s=self._settings.timeout_s,
            place=place,
            etag=cached.etag if cached else None,
            last_modified=cached.last_modified if cached else None,
        )
        now_s = self._now()
        if download.body is None:
            if cached is None:  # pragma: no cover - a fetch without validators refuses a 304
                raise SourceProtocolError("the origin confirms a version that nobody has")
            fresh_s = cached.fresh_s if download.max_age_s is None else _bound(download.max_age_s)
            self._confirmed[source_id] = now_s, fresh_s
            event(_log, "cache.confirmed", bytes=len(cached.body))
            return cached
        event(_log, "source.fetched", host=url.host, bytes=len(download.body))
        max_age_s = self._settings.ttl_s if download.max_age_s is None else download.max_age_s
        return CachedSource(
            body=download.body,
            sha256=await _in_thread(self._compute, partial(_hash, download.body)),
            fetched_at_s=now_s,
            fresh_s=_bound(max_age_s),
            etag=download.etag,
            last_modified=download.last_modified,
            storable=download.storable,
        )

    async def _read_cache(self, source_id: str) -> CachedSource | None:
        get = partial(
            self._store.get,
            source_key(self._settings.prefix, source_id),
            max_bytes=self._settings.max_bytes,
            timeout_s=self._settings.timeout_s,
        )

        def read() -> CachedSource | None:
            stored = get()
            return None if stored is None else read_stored(stored)

        return await _in_thread(self._reads, read)

    def _keep(self, source_id: str, found: CachedSource, source: Source) -> None:
        """Start the cache write; until it is done, further callers get `source`."""
        if len(self._storing) >= _MAX_PENDING_WRITES:  # each holds a body and a decoded image
            event(_log, "cache.not_kept", level=logging.WARNING, code="too_many_writes")
            return
        self._storing[source_id] = source
        put = partial(
            self._store.put,
            source_key(self._settings.prefix, source_id),
            found.body,
            content_type="application/octet-stream",
            metadata=to_object_metadata(found),
            timeout_s=self._settings.timeout_s,
        )
        running = asyncio.ensure_future(_in_thread(self._writes, put))

        def finish(done: asyncio.Future[None]) -> None:
            self._storing.pop(source_id, None)
            error = None if done.cancelled() else done.exception()
            if isinstance(error, EditError):
                event(_log, "cache.not_kept", level=logging.WARNING, code=error.code)
            elif error is not None:
                _log.error("cache.not_kept", exc_info=error)

        running.add_done_callback(finish)


async def _in_thread(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(threads, copy_context().run, call)


def _bound(fresh_s: int) -> int:
    return min(max(fresh_s, _MIN_FRESH_S), _MAX_FRESH_S)


def _hash_url(url: SourceUrl) -> str:
    return _hash(url.canonical.encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _copy(error: EditError) -> EditError:
    """Return the error without its traceback and causes, so that it can be kept and raised again."""
    return type(error)(error.message, details=error.details, **error.context)
