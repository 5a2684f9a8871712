"""The store port."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object from the store: its bytes and its metadata."""

    body: bytes
    metadata: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """The home of cached sources and results. Synchronous and thread-safe.

    Keys are `[0-9a-z/._-]`, without empty, `.` or `..` segments, and include their prefix. Metadata keys
    are `[a-z0-9-]`, values printable ASCII. `timeout_s` bounds a call with its retries, but not a server
    that sends byte by byte.
    """

    name: str
    """The bucket, or `local`."""

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:
        """Return the object, or None if there is none. Sends one request.

        Raises:
            StorageError: it cannot be read, or is over `max_bytes`.
        """
        ...

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        """Store `body` whole or not at all.

        Raises:
            StorageError: it could not be stored in time.
        """
        ...

    def link(self, key: str, *, expires_in_s: int) -> str:
        """Sign a URL that opens the object for 1 s to 7 days. Sends no request.

        Raises:
            StorageError: the link could not be signed.
        """
        ...

    def list_keys(self, prefix: str, *, max_keys: int, timeout_s: float) -> list[str]:
        """Return the keys that begin with `prefix`, which ends with a slash; at most `max_keys`.

        Raises:
            StoreDenied: the key may not list the bucket.
            StorageError: they cannot be read.
        """
        ...

    def check(self, *, timeout_s: float) -> None:
        """Put, get and delete a probe object.

        Raises:
            StorageError: one of the three failed; the message says what to check.
        """
        ...
