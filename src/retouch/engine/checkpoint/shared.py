"""Open the memory in which the processes of a host have a checkpoint's weights once."""

from collections.abc import Mapping

import torch

from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.checkpoint.entries import TensorEntry
from retouch.engine.memory.flat_params import ModelParams
from retouch.engine.memory.shared_memory import HostShare, SharedMemory


def open_shared(
    share: HostShare,
    params: ModelParams,
    stored: Mapping[str, TensorEntry],
    adapters: LoadedAdapters,
    *,
    dtype: torch.dtype,
) -> SharedMemory | None:
    """Return memory with a unit for each of `params`, or None if the file has other weights.

    Their bytes follow from the files, how each weight is stored, and the adapters that are merged.
    Where processes stream different units, each has those that it streams.
    """
    files = {entry.path: entry.path.stat() for entry in stored.values()}
    source = [
        str(dtype),
        [(path, stat.st_size, stat.st_mtime_ns) for path, stat in sorted(files.items())],
        [(unit.name, unit.layout) for unit in params],
        [(one.adapter.sha256, one.scale) for one in adapters.fixed if one.name in adapters.merged],
    ]
    return share.open(repr(source), [unit.size_bytes for unit in params])
