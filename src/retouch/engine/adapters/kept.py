"""Adapters that requests brought, in host memory by the SHA-256 of their file."""

import hashlib
import threading
from collections.abc import Mapping
from weakref import WeakValueDictionary

from cachetools import LRUCache

from retouch.editing.adapter_ports import HeldAdapter
from retouch.editing.ports import AdapterInfo
from retouch.engine.adapters.keys import AdapterRefused
from retouch.engine.adapters.read import Adapter, Shape, read_adapter
from retouch.engine.adapters.source import hold_in_memory
from retouch.errors import UnsupportedLora, one_line
from retouch.schema import lora_key


class KeptAdapters:
    """The latest adapters, `max_bytes` together, and each one that somebody holds.

    `_lock` guards both maps: `find` and `add` are safe to call from any thread.
    """

    def __init__(self, shapes: Mapping[str, Shape], max_bytes: int) -> None:
        self._shapes = shapes
        self._lock = threading.Lock()
        self._held: WeakValueDictionary[str, HeldAdapter] = WeakValueDictionary()
        self._latest: LRUCache[str, HeldAdapter] = LRUCache(
            max_bytes, getsizeof=lambda held: held.weights.size_bytes
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the latest ones."""
        return int(self._latest.currsize)

    def find(self, sha256: str) -> HeldAdapter | None:
        """Return the adapter of a file, if it is there."""
        with self._lock:
            self._latest.get(sha256)  # the latest to be used
            return self._held.get(sha256)

    def add(self, body: bytes, sha256: str) -> HeldAdapter:
        """Read a file and keep its adapter.

        Raises:
            UnsupportedLora: it has another SHA-256, or cannot be applied in full.
        """
        if hashlib.sha256(body).hexdigest() != sha256:
            raise UnsupportedLora("the file's SHA-256 is not the one given")
        try:
            with hold_in_memory(body) as path:
                adapter = read_adapter(path, self._shapes)
        except AdapterRefused as error:
            raise UnsupportedLora(one_line(str(error))) from error
        held = HeldAdapter(_describe(adapter), adapter)
        with self._lock:
            self._held[sha256] = held
            if adapter.size_bytes <= self._latest.maxsize:
                self._latest[sha256] = held
        return held


def _describe(adapter: Adapter) -> AdapterInfo:
    return AdapterInfo(lora_key(adapter.sha256), adapter.sha256, len(adapter.layers), adapter.rank)
