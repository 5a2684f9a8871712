"""The ports of adapters that requests bring: who fetches their files, and who keeps them."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from retouch.editing.ports import AdapterInfo


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class HeldAdapter:
    """A request's adapter in the memory of its keeper, at least for as long as this object lives.

    `weights` belong to the keeper.
    """

    info: AdapterInfo
    weights: Any


class AdapterKeeper(Protocol):
    """Keeps adapters by the SHA-256 of their file. Safe to call from any thread."""

    def find(self, sha256: str) -> HeldAdapter | None:
        """Return the adapter if it is in memory."""
        ...

    def add(self, body: bytes, sha256: str) -> HeldAdapter:
        """Read the file `body`, check it and keep it.

        Raises:
            UnsupportedLora: it has another SHA-256, or cannot be applied in full.
        """
        ...


@runtime_checkable
class TakesAdapters(Protocol):
    """An engine that applies the adapters of its keeper, if it has one."""

    keeper: AdapterKeeper | None


class AdapterFetcher(Protocol):
    """Gets the files of adapters."""

    async def load(self, url: str, sha256: str, *, timeout_s: float) -> HeldAdapter:
        """Return the adapter at a URL: from memory, or else from there.

        Raises:
            BadInput: the URL or the file cannot be used.
            DownloadFailed: the origin did not deliver.
            Overloaded: too many are being fetched.
        """
        ...
