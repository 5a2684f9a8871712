"""Source bytes as their origin gave them: how they are named, kept, aged and read back."""

import hashlib
import logging
from dataclasses import dataclass

from retouch.logs import event
from retouch.storage.port import StoredObject

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedSource:
    """Bytes as the origin gave them, and what it said about their age.

    `id` is the SHA-256 of the canonical URL, or of the bytes of a data: URL, in hex.
    """

    id: str
    body: bytes
    fetched_at_s: float = 0.0
    fresh_s: int = 0
    etag: str | None = None
    last_modified: str | None = None
    cached: bool = False
    stale: bool = False


def is_fresh(fetched_at_s: float, now_s: float, fresh_s: float) -> bool:
    """Whether a copy of that age may be used without asking.

    >>> is_fresh(100, 150, 60), is_fresh(100, 160, 60), is_fresh(200, 150, 60)
    (True, False, False)
    """
    return 0 <= now_s - fetched_at_s < fresh_s


def source_key(prefix: str, source_id: str) -> str:
    """Return the cache key of a source.

    >>> source_key("p/", "ab12")
    'p/sources/v1/ab/ab12'
    """
    return f"{prefix}sources/v1/{source_id[:2]}/{source_id}"


def to_object_metadata(original: CachedSource) -> dict[str, str]:
    """Return what is kept beside the bytes in the store."""
    metadata = {
        "sha256": hashlib.sha256(original.body).hexdigest(),
        "fetched-at": str(int(original.fetched_at_s)),
        "fresh-seconds": str(original.fresh_s),
        "etag": original.etag,
        "last-modified": original.last_modified,
    }
    return {name: value for name, value in metadata.items() if value}


def read_stored(source_id: str, stored: StoredObject) -> CachedSource | None:
    """Return the cached original, or None where what is stored is not whole."""
    metadata = stored.metadata
    try:
        fetched_at_s, fresh_s = float(int(metadata["fetched-at"])), int(metadata["fresh-seconds"])
        intact = metadata["sha256"] == hashlib.sha256(stored.body).hexdigest()
    except (KeyError, ValueError, OverflowError, TypeError):
        intact = False
    if not intact:
        event(_log, "cache.damaged", level=logging.WARNING, bytes=len(stored.body))
        return None
    return CachedSource(
        id=source_id,
        body=stored.body,
        fetched_at_s=fetched_at_s,
        fresh_s=fresh_s,
        etag=metadata.get("etag"),
        last_modified=metadata.get("last-modified"),
        cached=True,
    )
