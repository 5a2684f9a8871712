"""One parameter: its module, its type, and its place in a flat buffer."""

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from retouch.engine.packing.encoding import Encoding

ALIGNMENT = 256
"""Bytes: that of CUDA's own allocations, and enough for every kernel's vector loads."""
Layout = tuple[tuple[int, tuple[int, ...], torch.dtype, Encoding | None], ...]


@dataclass(frozen=True, slots=True)
class ParamView:
    """One parameter: where its module keeps it (`owner[name]`), and its place in the flat buffer.

    `dtype` is what it is computed with; with an `encoding` the buffer holds it packed.
    """

    path: str
    owner: dict[str, nn.Parameter | None]
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    encoding: Encoding | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes in the flat buffer."""
        if self.encoding:
            return self.encoding.size_bytes(self.shape)
        return count_bytes(self.shape, self.dtype)

    @property
    def expanded_bytes(self) -> int:
        """Bytes in the expansion buffer, alignment included: none for a plain parameter."""
        return round_up(count_bytes(self.shape, self.dtype)) if self.encoding else 0

    def bytes_in(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return its part of a flat buffer."""
        return buffer[self.offset : self.offset + self.size_bytes]


def count_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Count the bytes of a tensor.

    >>> count_bytes((3, 5), torch.float16)
    30
    """
    return dtype.itemsize * prod(shape)


def round_up(count: int) -> int:
    """Round a number of bytes up to the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT
