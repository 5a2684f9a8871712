"""A cached source: its key, its freshness and its metadata in the store."""

import hashlib
import logging
from dataclasses import dataclass

from retouch.logs import event
from retouch.storage.port import StoredObject

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedSource:
    """The bytes of a source as the origin sent them, and how long they are fresh.

    `sha256` is the hash of `body` in hex, `fetched_at_s` Unix time. `cached`: read from the store;
    `stale`: no longer fresh, but the origin could not be asked; `storable`: new, and may be stored.
    """

    body: bytes
    sha256: str
    fetched_at_s: float = 0.0
    fresh_s: int = 0
    etag: str | None = None
    last_modified: str | None = None
    cached: bool = False
    stale: bool = False
    storable: bool = False


def is_fresh(fetched_at_s: float, now_s: float, fresh_s: float) -> bool:
    """Whether a copy of that age may be used without asking the origin.

    >>> is_fresh(100, 150, 60), is_fresh(100, 160, 60), is_fresh(200, 150, 60)
    (True, False, False)
    """
    return 0 <= now_s - fetched_at_s < fresh_s


def to_object_metadata(source: CachedSource) -> dict[str, str]:
    """Return the metadata that is stored with the bytes."""
    metadata = {
        "sha256": source.sha256,
        "fetched-at": str(int(source.fetched_at_s)),
        "fresh-seconds": str(source.fresh_s),
        "etag": source.etag,
        "last-modified": source.last_modified,
    }
    return {name: value for name, value in metadata.items() if value}


def read_stored(stored: StoredObject) -> CachedSource | None:
    """Return the cached source, or None if the stored object is damaged."""
    metadata = stored.metadata
    sha256 = hashlib.sha256(stored.body).hexdigest()
    try:
        fetched_at_s, fresh_s = float(int(metadata["fetched-at"])), int(metadata["fresh-seconds"])
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
        etag=metadata.get("etag"),
        last_modified=metadata.get("last-modified"),
        cached=True,
    )
