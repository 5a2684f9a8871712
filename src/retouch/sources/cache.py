"""Sources in the store: read, and written beside the edit that brought them."""

import asyncio
import copy
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cachetools import TTLCache

from retouch import tracing
from retouch.editing.ports import Source
from retouch.errors import EditError, StorageError, StoreDenied, StoreUnavailable
from retouch.logs import event
from retouch.sources.cache_entry import (
    MAX_FRESH_S,
    CachedSource,
    read_stored,
    stale_for_s,
    to_object_metadata,
)
from retouch.storage.keys import source_key
from retouch.storage.port import Store

_log = logging.getLogger(__name__)
_MAX_PENDING_WRITES = 16
"""Each holds a body and a decoded image."""
_OUTAGE_S = 10.0
_REMEMBERED = 4096


class SourceCache:
    """The store as a cache of sources. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        prefix: str,
        max_bytes: int,
        timeout_s: float,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._now = now
        self._clock = clock
        # Apart, so that slow writes delay no read.
        self._reads = ThreadPoolExecutor(8, thread_name_prefix="source-read")
        self._writes = ThreadPoolExecutor(4, thread_name_prefix="source-write")
        self._writing: dict[str, Source] = {}
        self._outage: tuple[float, StorageError] | None = None
        # By source and time of its download: when the origin said "not modified", for how long the
        # copy is fresh from then on, and for how long it may be stale. Rewriting the object would add
        # a version in a versioned bucket.
        self._confirmed: TTLCache[tuple[str, float], tuple[float, int, int]] = TTLCache(
            _REMEMBERED, MAX_FRESH_S, timer=clock
        )

    @property
    def pending_writes(self) -> int:
        """How many sources are being written or wait for it."""
        return len(self._writing)

    def close(self) -> None:
        """Let pending writes end and take no more. Blocks."""
        self._reads.shutdown()
        self._writes.shutdown()

    def being_written(self, source_id: str) -> Source | None:
        """Return the source if it is about to be in the store."""
        return self._writing.get(source_id)

    async def read(self, source_id: str) -> CachedSource | None:
        """Return the stored source, None if there is none or it is damaged.

        After a failure no read is tried for 10 s, so that an outage does not delay every edit.

        Raises:
            StorageError: the store failed, now or a moment ago.
        """
        if self._outage is not None and self._clock() < self._outage[0]:
            raise copy.copy(self._outage[1])

        def get() -> CachedSource | None:
            stored = self._store.get(
                source_key(self._prefix, source_id),
                max_bytes=self._max_bytes,
                timeout_s=self._timeout_s,
            )
            return None if stored is None else read_stored(stored)

        try:
            return await tracing.run_in(self._reads, get)
        except StorageError as error:
            event(_log, "cache.failed", level=logging.WARNING, code=error.code, **error.context)
            if isinstance(error, StoreUnavailable | StoreDenied):  # and not only this object
                self._outage = self._clock() + _OUTAGE_S, copy.copy(error)
            raise

    def stale_for_s(self, source_id: str, cached: CachedSource) -> tuple[float, int]:
        """Return for how long the copy has been stale, below 0 while it is fresh, and may be (s)."""
        if confirmed := self._confirmed.get((source_id, cached.fetched_at_s)):
            confirmed_at_s, fresh_s, max_stale_s = confirmed
            return stale_for_s(confirmed_at_s, self._clock(), fresh_s), max_stale_s
        return stale_for_s(cached.fetched_at_s, self._now(), cached.fresh_s), cached.max_stale_s

    def confirm(self, source_id: str, cached: CachedSource) -> None:
        """Note that the origin has just confirmed the copy, with the lifetimes that it now has."""
        confirmed = self._clock(), cached.fresh_s, cached.max_stale_s
        self._confirmed[source_id, cached.fetched_at_s] = confirmed

    def keep(self, source_id: str, found: CachedSource, source: Source) -> None:
        """Start the write. A failure is logged and costs the edit nothing."""
        if len(self._writing) >= _MAX_PENDING_WRITES:
            event(_log, "cache.not_kept", level=logging.WARNING, code="too_many_writes")
            return
        self._writing[source_id] = source

        def put() -> None:
            self._store.put(
                source_key(self._prefix, source_id),
                found.body,
                content_type="application/octet-stream",
                metadata=to_object_metadata(found),
                timeout_s=self._timeout_s,
            )

        def finish(done: asyncio.Future[None]) -> None:
            self._writing.pop(source_id, None)
            error = None if done.cancelled() else done.exception()
            if isinstance(error, EditError):
                event(_log, "cache.not_kept", level=logging.WARNING, code=error.code)
            elif error is not None:
                _log.error("cache.not_kept", exc_info=error)

        tracing.run_in(self._writes, put).add_done_callback(finish)
