"""The interface of an encoding, and values that are not packed."""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch


class Encoding(Protocol):
    """How the bytes of a weight hold its values. Hashable; equal encodings expand alike."""

    @property
    def name(self) -> str:
        """Its name in settings, files and reports, such as `int8` or `Q4_K`."""
        ...

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a weight of `shape`.

        Raises:
            ValueError: weights of this shape cannot be encoded.
        """
        ...

    def expand(self, packed: torch.Tensor, out: torch.Tensor, factor: float = 1.0) -> None:
        """Write the values of `packed` (size_bytes,; uint8) times `factor` to `out`, contiguous.

        Computed in float32 and rounded once, to the dtype of `out`. The bytes start at a multiple of
        16. No step depends on the data, so `torch.compile` makes one kernel of it.
        """
        ...


class Packer(Encoding, Protocol):
    """An encoding that 16- and 32-bit weights are packed to."""

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight`, finite, as bytes (size_bytes,; uint8) on its device."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Values of `dtype` as they are."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The dtype's name, such as `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a weight of `shape`.

        >>> Plain(torch.float16).size_bytes((3, 5))
        30
        """
        return prod(shape) * self.dtype.itemsize

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` rounded to the dtype, as bytes."""
        return weight.to(self.dtype).contiguous().view(-1).view(torch.uint8)

    def expand(self, packed: torch.Tensor, out: torch.Tensor, factor: float = 1.0) -> None:
        """Write the values times `factor` to `out`."""
        values = packed.view(self.dtype).view(out.shape)
        out.copy_(values if factor == 1.0 else values.float() * factor)
