"""One parameter: its module, its type, and its place in a flat buffer."""

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from retouch.engine.packing.encoding import Encoding
from retouch.engine.packing.rows import Fp8Operand

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
    def is_expanded(self) -> bool:
        """Whether it must be expanded before it runs."""
        return self.encoding is not None and not isinstance(self.encoding, Fp8Operand)

    @property
    def expanded_bytes(self) -> int:
        """Bytes in the expansion buffer, alignment included: none if it is not expanded."""
        return round_up(count_bytes(self.shape, self.dtype)) if self.is_expanded else 0

    def bytes_in(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return its part of a flat buffer."""
        return buffer[self.offset : self.offset + self.size_bytes]


def count_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Count the bytes of a tensor.

    >>> count_bytes((3, 5), torch.float16)
    30
    """
    return dtype.itemsize * prod(shape)


def view_operand(
    encoding: Fp8Operand, packed: torch.Tensor, shape: tuple[int, ...]
) -> nn.Parameter:
    """Return the values in `packed` (size_bytes,) as a parameter with the attribute `scales` (out,)."""
    values, scales = (
        nn.Parameter(part, requires_grad=False) for part in encoding.split(packed, shape)
    )
    values.scales = scales  # type: ignore[attr-defined]
    return values


def round_up(count: int) -> int:
    """Round a number of bytes up to the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT
