"""A cached source: whether it is fresh, and its metadata in the store."""

import hashlib
import logging
from dataclasses import dataclass

from retouch.logs import event
from retouch.net.cache_headers import FOREVER_S
from retouch.storage.port import StoredObject

_log = logging.getLogger(__name__)
_MIN_FRESH_S, MAX_FRESH_S = 60, 7 * 86400


@dataclass(frozen=True, slots=True)
class CachedSource:
    """The bytes of a source as the origin sent them, and how long they are fresh.

    `sha256` is the hash of `body` in hex, `fetched_at_s` Unix time, `max_stale_s` for how long the
    origin lets it be used past `fresh_s` while it fails. `cached`: read from the store;
    `stale`: no longer fresh, but the origin could not be asked; `storable`: new, and may be stored.
    """

    body: bytes
    sha256: str
    fetched_at_s: float = 0.0
    fresh_s: int = 0
    max_stale_s: int = FOREVER_S
    etag: str | None = None
    last_modified: str | None = None
    cached: bool = False
    stale: bool = False
    storable: bool = False


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 in hex. Takes some 20 ms for the largest source."""
    return hashlib.sha256(data).hexdigest()


def stale_for_s(fetched_at_s: float, now_s: float, fresh_s: float) -> float:
    """Return for how long a copy has been stale, in seconds; below 0 while it is fresh.

    A copy from the future is just stale: the clock was wrong then or is now.

    >>> stale_for_s(100, 150, 60), stale_for_s(100, 160, 60), stale_for_s(200, 150, 60)
    (-10, 0, 0)
    """
    return now_s - fetched_at_s - fresh_s if now_s >= fetched_at_s else 0


def lifetime_s(
    max_age_s: int | None, heuristic_s: int | None, *, ttl_s: int, has_validators: bool
) -> int:
    """Return how long a source is fresh: as its origin says, else `ttl_s` or less by the heuristic.

    At most a week, and at least a minute for a source that the origin cannot confirm, so that a burst
    of edits downloads it once.

    >>> lifetime_s(None, 40, ttl_s=3600, has_validators=True)
    40
    """
    if max_age_s is None:
        max_age_s = ttl_s if heuristic_s is None else min(ttl_s, heuristic_s)
    return min(max(max_age_s, 0 if has_validators else _MIN_FRESH_S), MAX_FRESH_S)


def to_object_metadata(source: CachedSource) -> dict[str, str]:
    """Return the metadata that is stored with the bytes."""
    metadata = {
        "sha256": source.sha256,
        "fetched-at": str(int(source.fetched_at_s)),
        "fresh-seconds": str(source.fresh_s),
        "max-stale-seconds": str(source.max_stale_s) if source.max_stale_s < FOREVER_S else None,
        "etag": source.etag,
        "last-modified": source.last_modified,
    }
    return {name: value for name, value in metadata.items() if value}


def read_stored(stored: StoredObject) -> CachedSource | None:
    """Return the cached source, or None if the stored object is damaged."""
    metadata = stored.metadata
    sha256 = sha256_hex(stored.body)
    try:
        fetched_at_s, fresh_s = float(int(metadata["fetched-at"])), int(metadata["fresh-seconds"])
        max_stale_s = int(metadata.get("max-stale-seconds", FOREVER_S))  # older copies lack it
        intact = metadata["sha256"] == sha256
    except (KeyError, ValueError, OverflowError, TypeError):
        intact = False
    if not intact:
        event(_log, "cache.damaged", level=logging.WARNING, bytes=len(stored.body))
        return None
    return CachedSource(
        body=stored.body,
        sha256=sha256,
        fetched_at_s=fetched_at_s,
        fresh_s=fresh_s,
        max_stale_s=max_stale_s,
        etag=metadata.get("etag"),
        last_modified=metadata.get("last-modified"),
        cached=True,
    )
