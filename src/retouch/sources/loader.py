"""Load source images: from the cache if fresh, else from their origin, each URL fetched once at a time.

The cache holds the bytes as the origin sent them; they are decoded anew on every use.
"""

import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from cachetools import TLRUCache

from retouch import tracing
from retouch.editing.ports import Source
from retouch.errors import (
    BadInput,
    CacheReadFailed,
    DownloadFailed,
    EditError,
    SourceProtocolError,
    StorageError,
)
from retouch.images.kind import MODES, Kind
from retouch.images.sandbox import Decoder
from retouch.logs import event
from retouch.net.download import Downloader
from retouch.net.download_limiter import DownloadLimiter, Place
from retouch.net.url import SourceUrl, parse_url
from retouch.schema import CacheMode, Upload
from retouch.sources.cache import SourceCache
from retouch.sources.cache_entry import CachedSource, lifetime_s, sha256_hex
from retouch.sources.data_url import decode_data_url, is_data_url
from retouch.sources.signed_url import valid_for_s
from retouch.sources.single_flight import SingleFlight
from retouch.sources.trailing_bytes import trim
from retouch.storage.port import Store

_log = logging.getLogger(__name__)
_REMEMBERED = 4096
_REFUSED_FOR_S, _TRANSIENT_FOR_S = 60.0, 10.0
_MIN_VALID_S = 60.0
_DECODE_TIMEOUT_S = 60.0
"""Also for the wait in a burst. A load may have many callers, each with a deadline of its own."""
_STALE_NOTE = "the origin could not be asked: an older copy was used"


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """Limits and lifetimes of sources."""

    prefix: str = ""
    max_bytes: int = 26214400
    ttl_s: int = 3600
    max_stale_s: int = 86400
    timeout_s: float = 20.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """A recent failure of a source. `has_copy`: a stale copy answers while it is remembered."""

    error: EditError
    for_s: float
    has_copy: bool = False


@dataclass(frozen=True, slots=True)
class _Load:
    """One load of a URL. `valid_s` is how long a signed URL is valid, None for any other."""

    url: SourceUrl
    source_id: str
    cache: CacheMode
    place: Place
    valid_s: float | None

    @property
    def is_worth_keeping(self) -> bool:
        """Whether another request can have this very URL before it is over."""
        return self.valid_s is None or self.valid_s >= _MIN_VALID_S


class SourceLoader:
    """The `Sources` port over a store, an origin and a decoder. Belongs to one event loop.

    `now` gives Unix time, by which copies in the store age; `clock` is monotonic.
    """

    def __init__(
        self,
        *,
        store: Store,
        downloader: Downloader,
        decoder: Decoder,
        limiter: DownloadLimiter,
        settings: SourceSettings,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._downloader = downloader
        self._decoder = decoder
        self._settings = settings
        self._now = now
        self._limiter = limiter
        self._cache = SourceCache(
            store,
            prefix=settings.prefix,
            max_bytes=settings.max_bytes,
            timeout_s=settings.timeout_s,
            now=now,
            clock=clock,
        )
        self._compute = ThreadPoolExecutor(2, thread_name_prefix="source-compute")
        self._loads: SingleFlight[Source] = SingleFlight()
        self._failures: TLRUCache[str, _Failure] = TLRUCache(
            _REMEMBERED, ttu=lambda _, failure, now_s: now_s + failure.for_s, timer=clock
        )

    @property
    def pending_writes(self) -> int:
        """How many sources are being written to the cache."""
        return self._cache.pending_writes

    def close(self) -> None:
        """Let running cache writes end and take no more. Blocks."""
        self._cache.close()
        self._compute.shutdown()

    async def source_id(self, image: str | Upload) -> str:
        """Hash the canonical URL, or the bytes of a data: URL or an upload."""
        if isinstance(image, Upload) or is_data_url(image):
            return (await self._read_image(image)).sha256
        return _hash_url(parse_url(image))

    async def load(
        self,
        image: str | Upload,
        *,
        timeout_s: float,
        cache: CacheMode = "default",
        kind: Kind = "picture",
    ) -> Source:
        """Return the picture; concurrent calls for one URL share one cache read and one download."""
        if isinstance(image, Upload) or is_data_url(image):
            with self._limiter.admit() as place:
                found = await self._read_image(image)
                place.hold(len(found.body))
                return await self._decode_source(found.sha256, found, kind, timeout_s=timeout_s)
        url = parse_url(image)
        source_id = _hash_url(url)
        if cache == "default":
            failure = self._failures.get(source_id)
            if failure is not None and not failure.has_copy:
                raise copy.copy(failure.error)
            source = self._cache.being_written(source_id)
            if source is not None and source.image.mode == MODES[kind]:
                return replace(source, cached=True, fetch_ms=0.0, decode_ms=0.0)
        start = partial(self._load_url, url, source_id, cache, kind)
        with tracing.span("source.load"):
            return await self._loads.do(f"{kind} {cache} {source_id}", start)

    async def _read_image(self, image: str | Upload) -> CachedSource:
        if isinstance(image, Upload):
            return CachedSource(image.body, image.sha256)
        decode = partial(decode_data_url, image, max_bytes=self._settings.max_bytes)
        body = await tracing.run_in(self._compute, decode)
        return CachedSource(body, await tracing.run_in(self._compute, partial(sha256_hex, body)))

    async def _load_url(
        self, url: SourceUrl, source_id: str, cache: CacheMode, kind: Kind
    ) -> Source:
        began = time.perf_counter()
        try:
            with self._limiter.admit() as place:
                load = _Load(url, source_id, cache, place, valid_for_s(url, self._now()))
                found = await self._find(load)
                fetch_ms = 1000 * (time.perf_counter() - began)
                source = await self._decode_source(
                    source_id, found, kind, fetch_ms=fetch_ms, timeout_s=_DECODE_TIMEOUT_S
                )
        except (BadInput, DownloadFailed) as error:
            if cache == "default":  # else others may have a copy
                self._remember(source_id, error)
            raise
        if not found.stale:
            self._failures.pop(source_id, None)
        if found.storable:
            self._cache.keep(source_id, found, source)
        return source

    def _remember(self, source_id: str, error: EditError, *, has_copy: bool = False) -> None:
        is_transient = isinstance(error, DownloadFailed) and error.is_transient
        for_s = _TRANSIENT_FOR_S if is_transient else _REFUSED_FOR_S
        self._failures[source_id] = _Failure(copy.copy(error), for_s, has_copy)

    async def _decode_source(
        self,
        source_id: str,
        found: CachedSource,
        kind: Kind,
        *,
        timeout_s: float,
        fetch_ms: float = 0.0,
    ) -> Source:
        began = time.perf_counter()
        with tracing.span("source.decode"):
            decoded = await self._decoder.decode(found.body, timeout_s=timeout_s, kind=kind)
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

    async def _find(self, load: _Load) -> CachedSource:
        """Return the bytes to use: a fresh copy, what the origin sends, or a stale copy."""
        cache_fault: StorageError | None = None
        cached: CachedSource | None = None
        if load.cache != "no-store" and load.valid_s != 0:
            try:
                cached = await self._cache.read(load.source_id)
            except StorageError as error:
                cache_fault = error
        may_be_stale = False
        if cached is not None:
            load.place.hold(len(cached.body))
            stale_s, max_stale_s = self._cache.stale_for_s(load.source_id, cached)
            if load.cache == "default" and stale_s < 0:
                event(_log, "cache.hit", bytes=len(cached.body))
                return cached
            max_stale_s = min(max_stale_s, self._settings.max_stale_s)
            may_be_stale = load.cache == "default" and stale_s < max_stale_s
            if may_be_stale and load.source_id in self._failures:  # do not wait for it again
                return replace(cached, stale=True)
        try:
            with tracing.span("source.fetch"):
                return await self._ask_origin(load, cached)
        except DownloadFailed as error:
            if cached is not None and may_be_stale and error.is_transient:
                self._remember(load.source_id, error, has_copy=True)
                event(_log, "cache.stale_used", level=logging.WARNING, code=error.code)
                return replace(cached, stale=True)
            if cache_fault is not None:
                message = f"the cache could not be read, and then: {error.message}"
                raise CacheReadFailed(message, details={"origin": error.code}) from error
            raise

    async def _ask_origin(self, load: _Load, cached: CachedSource | None) -> CachedSource:
        download = await self._downloader.fetch(
            load.url,
            timeout_s=self._settings.timeout_s,
            place=load.place,
            etag=cached.etag if cached else None,
            last_modified=cached.last_modified if cached else None,
        )
        fresh_s = lifetime_s(
            download.max_age_s,
            download.heuristic_s,
            ttl_s=self._settings.ttl_s,
            has_validators=download.body is None or bool(download.etag or download.last_modified),
        )
        if load.valid_s is not None:
            fresh_s = min(fresh_s, int(load.valid_s))
        if download.body is None:
            if cached is None:  # pragma: no cover - a fetch without validators refuses a 304
                raise SourceProtocolError("the origin confirms a version that nobody has")
            if download.max_age_s is None and (cached.fresh_s or download.heuristic_s is None):
                fresh_s = min(fresh_s, cached.fresh_s)
            max_stale_s = min(cached.max_stale_s, download.max_stale_s)
            confirmed = replace(cached, fresh_s=fresh_s, max_stale_s=max_stale_s)
            self._cache.confirm(load.source_id, confirmed)
            event(_log, "cache.confirmed", bytes=len(cached.body))
            return cached
        event(_log, "source.fetched", host=load.url.host, bytes=len(download.body))
        body = await tracing.run_in(self._compute, partial(trim, download.body))
        return CachedSource(
            body=body,
            sha256=await tracing.run_in(self._compute, partial(sha256_hex, body)),
            fetched_at_s=self._now(),
            fresh_s=fresh_s,
            max_stale_s=download.max_stale_s,
            etag=download.etag,
            last_modified=download.last_modified,
            storable=download.storable and load.cache != "no-store" and load.is_worth_keeping,
        )


def _hash_url(url: SourceUrl) -> str:
    return sha256_hex(url.canonical.encode())
