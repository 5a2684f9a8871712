"""Map weights from their files in place of a copy in host memory.

For weights that are read once a schedule. Their pages are the system's file cache, which it takes
back where memory is short, so only files of a local disk are mapped.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from retouch.engine.checkpoint.entries import TensorEntry
from retouch.engine.checkpoint.local_disk import MOUNTS, is_local
from retouch.engine.memory.flat_params import MODULATION


def map_modulation(
    transformer: nn.Module, stored: Mapping[str, TensorEntry], mounts: Path = MOUNTS
) -> dict[str, torch.Tensor]:
    """Return the bytes of the blocks' modulation weights as they lie in their files, by path.

    Nothing unless all are there as `transformer` has them, plain and aligned, on local disks.
    """
    wanted = {
        f"transformer.{name}": parameter
        for name, parameter in transformer.named_parameters()
        if name.startswith("transformer_blocks.") and name.split(".")[2] in MODULATION
    }
    if not all(
        path in stored and _is_usable(stored[path], parameter) for path, parameter in wanted.items()
    ):
        return {}
    entries = {path: stored[path] for path in wanted}
    files = {entry.path for entry in entries.values()}
    if not all(is_local(file, mounts) for file in files):
        return {}
    maps = {file: _map(file) for file in files}
    return {
        path: maps[entry.path][entry.offset : entry.offset + entry.size_bytes]
        for path, entry in entries.items()
    }


def _is_usable(entry: TensorEntry, parameter: torch.Tensor) -> bool:
    return (
        entry.dtype == parameter.dtype
        and entry.shape == tuple(parameter.shape)
        and entry.offset % parameter.dtype.itemsize == 0
    )


def _map(path: Path) -> torch.Tensor:
    """Map a whole file: (bytes,). Copy on write, because torch has no read-only tensors."""
    with path.open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(memory, dtype=torch.uint8)
