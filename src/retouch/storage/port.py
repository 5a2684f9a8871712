"""The store port: where cached sources and results live."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object from the store: its bytes and the metadata it was put with."""

    body: bytes
    metadata: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """Where cached sources and results live. Sync and thread-safe; every call has a time limit.

    Keys are `[0-9a-z/._-]`, without empty, `.` or `..` segments, and come with their prefix.
    Metadata keys are lower-case `[a-z0-9-]`, values printable ASCII.
    """

    name: str
    """The bucket, or for a local store the word `local`."""

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:
        """Return the object, or None where there is none. One request.

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

    def link(self, key: str, *, content_type: str, filename: str, expires_in_s: int) -> str:
        """Sign a URL that opens the object for 1 s to 7 days. No request is made.

        Raises:
            StorageError: the link could not be signed.
        """
        ...

    def check(self, *, timeout_s: float) -> None:
        """Put, get and delete a probe object.

        Raises:
            StorageError: one of the three failed; the message says what to mend.
        """
        ...
