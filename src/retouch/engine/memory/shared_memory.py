"""Host memory that the processes of one host share, so that each weight is there once.

An anonymous file: it ends with the last process that has it open or mapped, however that ends.
Importing this module imports no torch.
"""

import fcntl
import mmap
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Self

_VARIABLE = "RETOUCH_WEIGHTS"
"""Names the file's descriptor and the number of processes to those that inherit it."""
_NAME = "retouch-weights"
_ALIGNMENT = 2 << 20
"""Bytes of a huge page. What lies between units is never written and takes no memory."""
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class HostShare:
    """The file that so many `processes` share, by its descriptor here."""

    descriptor: int
    processes: int

    @classmethod
    def create(cls, processes: int) -> Self | None:
        """Make the file, without memory yet, for processes that this one starts from now on to find.

        None where the system has no such files.
        """
        with suppress(AttributeError, OSError):
            share = cls(os.memfd_create(_NAME, 0), processes)
            os.environ[_VARIABLE] = f"{share.descriptor},{processes}"
            return share
        return None

    @classmethod
    def find(cls) -> Self | None:
        """Return the file that this process inherited or made, if any."""
        with suppress(KeyError, ValueError, OSError):
            share = cls(*map(int, os.environ[_VARIABLE].split(",")))
            # Another program in between may have closed it and reused its number.
            if share._path.readlink().name.startswith(f"memfd:{_NAME}"):
                return share
        return None

    @property
    def used_bytes(self) -> int:
        """Memory that the file takes by now."""
        return os.fstat(self.descriptor).st_blocks * 512  # of any file system

    def open(self, source: str, sizes: Sequence[int]) -> "SharedMemory | None":
        """Map memory for units of so many bytes, or return None if the file has other ones.

        `source` says what the bytes follow from. The first process decides what the file has.
        """
        key = sha256(f"{source} {sizes}".encode()).digest()
        # A lock excludes other processes only on a file that each has opened itself.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        with _locked(descriptor):
            if not any(os.pread(descriptor, _KEY_BYTES, 0)):
                os.truncate(descriptor, _offsets(sizes)[-1])
                os.pwrite(descriptor, key, 0)
            if os.pread(descriptor, _KEY_BYTES, 0) == key:
                return SharedMemory(descriptor, sizes)
        os.close(descriptor)
        return None

    @property
    def _path(self) -> Path:
        return Path(f"/proc/self/fd/{self.descriptor}")


class SharedMemory:
    """A map of the file: units in order, and which of them are filled.

    Only a process that has the lock fills units, those that are not filled yet. A process that is
    killed meanwhile leaves them so, and the next begins them again.
    """

    def __init__(self, descriptor: int, sizes: Sequence[int]) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._sizes, self._offsets = sizes, _offsets(sizes)
        self._memory = mmap.mmap(descriptor, self._offsets[-1])
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._memory.madvise(mmap.MADV_DONTFORK)  # a fork would have no use for it
        self.filled = memoryview(self._memory)[_KEY_BYTES:][: len(sizes)]
        """1 for each unit that has its bytes, which no process changes from then on."""

    def unit(self, at: int) -> memoryview:
        """Return the bytes of a unit."""
        return memoryview(self._memory)[self._offsets[at] :][: self._sizes[at]]

    def locked(self) -> AbstractContextManager[None]:
        """Wait until no other process has the lock, and have it."""
        return _locked(self._descriptor)


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Return where each unit begins, after the key and a byte for each, and where the file ends.

    >>> _offsets([1, 3 << 20]) == [2 << 20, 4 << 20, 8 << 20]
    True
    """
    sizes = [_KEY_BYTES + len(sizes), *sizes]
    return list(accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes))


@contextmanager
def _locked(descriptor: int) -> Iterator[None]:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def sharing(processes: int) -> Iterator[None]:
    """Have so many processes share a file if there is none yet: those that this one starts meanwhile."""
    found = HostShare.find()
    made = HostShare.create(processes) if not found and processes > 1 else None
    try:
        yield
    finally:
        if made:
            del os.environ[_VARIABLE]
            os.close(made.descriptor)
