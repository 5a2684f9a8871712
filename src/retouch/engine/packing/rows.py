"""int8 and fp8 with a scale for each row: weight = scale * value."""

from dataclasses import dataclass
from math import prod

import torch

_ALIGNMENT = 16
"""Bytes: what `torch._scaled_mm` wants of its operands."""
_NAN = 0x7F
"""float8_e4m3fn's bits but for the sign."""


@dataclass(frozen=True, slots=True)
class RowScaled:
    """Values of one byte up to `largest`, after float32 scales: one for each row of the first dimension.

    A scale for a whole tensor is that scale in every row.
    """

    name: str
    dtype: torch.dtype
    largest: float

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a weight of `shape`, which has rows.

        >>> INT8.size_bytes((3, 8))
        40
        """
        if not shape:
            raise ValueError(f"{self.name} needs rows")
        return _scales_bytes(shape[0]) + prod(shape)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` with each row's largest magnitude at the end of the range, as bytes."""
        rows = weight.flatten(1).float()  # (out, ...) -> (out, in)
        scales = rows.abs().amax(1, keepdim=True) / self.largest
        values = rows / torch.where(scales > 0, scales, 1.0)
        if not self.dtype.is_floating_point:
            values = values.round()
        return self.join(values.to(self.dtype), scales[:, 0])

    def join(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Return the bytes of `values` (out, ...; `dtype`) with `scales` (out,) or ()."""
        packed = values.new_zeros(self.size_bytes(tuple(values.shape)), dtype=torch.uint8)
        into_values, into_scales = self.split(packed, tuple(values.shape))
        into_values.copy_(values)
        into_scales.copy_(scales)
        return packed

    def split(
        self, packed: torch.Tensor, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of the values (`shape`; `dtype`) and their scales (out,; float32)."""
        start = _scales_bytes(shape[0])
        scales = packed[: 4 * shape[0]].view(torch.float32)
        return packed[start:].view(self.dtype).view(shape), scales

    def expand(self, packed: torch.Tensor, out: torch.Tensor, factor: float = 1.0) -> None:
        """Write the values times their scale and `factor` to `out`."""
        values, scales = self.split(packed, tuple(out.shape))
        rows = out.view(len(scales), -1)  # (out, ...) -> (out, in)
        rows.copy_(values.view(rows.shape).float() * (scales * factor)[:, None])

    def is_finite(self, packed: torch.Tensor) -> bool:
        """Whether no byte of the values in `packed`, without scales, is NaN; fp8 has no infinity."""
        return not self.dtype.is_floating_point or not bool((packed & _NAN == _NAN).any())


class Fp8Operand(RowScaled):
    """Values and scales that fp8 products take as they are, so that nothing is expanded."""


INT8 = RowScaled("int8", torch.int8, 127.0)
FP8 = RowScaled("fp8", torch.float8_e4m3fn, 448.0)
FP8_OPERAND = Fp8Operand(FP8.name, FP8.dtype, FP8.largest)


def _scales_bytes(rows: int) -> int:
    return -(-4 * rows // _ALIGNMENT) * _ALIGNMENT
