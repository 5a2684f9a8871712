"""Host memory that the GPU copies from: mapped in exact size, and pinned."""

import mmap
from typing import Any

import torch

from retouch.engine.memory.flat_params import FlatParams


def map_host(size_bytes: int) -> torch.Tensor:
    """Map private host memory of exactly this size, in huge pages where the kernel gives them.

    torch rounds its own pinned allocations up to a power of two and faults their pages in from one
    thread; here the reader's threads do that before `pin`.
    """
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(mmap.MADV_DONTFORK)  # a fork would copy pinned pages at once
    return torch.frombuffer(memory, dtype=torch.uint8)


def pin(params: FlatParams) -> bool:  # pragma: no cover - needs a GPU
    """Let the GPU read the storage on the host directly. False if the system does not allow it."""
    runtime: Any = torch.cuda
    storage: Any = params.storage
    return int(runtime.cudart().cudaHostRegister(storage.data_ptr(), storage.numel(), 0)) == 0


def unpin(params: FlatParams) -> None:  # pragma: no cover - needs a GPU
    """Undo `pin`, before the memory is freed."""
    runtime: Any = torch.cuda
    runtime.synchronize()  # a prefetch may still be running
    storage: Any = params.storage
    runtime.cudart().cudaHostUnregister(storage.data_ptr())
