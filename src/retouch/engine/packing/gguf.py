"""The block types of GGUF files (ggml-org/ggml: src/ggml-quants.c; its `gguf` package has them in numpy).

A block is a struct of bytes: float16 scales (`d`, and `m` for a minimum), the scales of its groups,
and the low and high bits of its values.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch

from retouch.engine.packing.encoding import Encoding, Plain

_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The levels of IQ4_NL."""
_EXPONENT = 0x7C
"""A float16 number's exponent in its high byte: all ones are NaN or infinity."""


@dataclass(frozen=True, slots=True)
class GgufBlocks:
    """Blocks of `values` weights in `block_bytes` bytes; `decode` maps (block, byte) to (block, value).

    A block's float16 scales start at the bytes `halves`. Every value is multiplied by `factor` too.
    """

    name: str
    values: int
    block_bytes: int
    halves: tuple[int, ...]
    decode: Callable[[torch.Tensor], torch.Tensor] = field(repr=False)
    factor: float = 1.0

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a weight of `shape`, whose rows are whole blocks.

        >>> TYPES[8].size_bytes((2, 64))
        136
        """
        if not shape or not prod(shape) or shape[-1] % self.values:
            raise ValueError(f"{self.name} needs rows in multiples of {self.values}, not {shape}")
        return prod(shape) // self.values * self.block_bytes

    def expand(self, packed: torch.Tensor, out: torch.Tensor, factor: float = 1.0) -> None:
        """Write the blocks' values times `factor` to `out`."""
        values = self.decode(packed.view(-1, self.block_bytes))
        factor *= self.factor
        out.copy_((values if factor == 1.0 else values * factor).view(out.shape))

    def is_finite(self, packed: torch.Tensor) -> bool:
        """Whether no value of whole blocks is NaN or infinite: none is unless a scale is."""
        exponents = packed.view(-1, self.block_bytes)[:, [at + 1 for at in self.halves]]
        return not bool((exponents & _EXPONENT == _EXPONENT).any())


def _q4_0(block: torch.Tensor) -> torch.Tensor:
    return _half(block, 0) * (_bits(block[:, 2:], 4, 16) - 8.0)


def _q4_1(block: torch.Tensor) -> torch.Tensor:
    return _half(block, 0) * _bits(block[:, 4:], 4, 16) + _half(block, 2)


def _q5_0(block: torch.Tensor) -> torch.Tensor:
    return _half(block, 0) * (_five_bits(block[:, 2:]) - 16.0)


def _q5_1(block: torch.Tensor) -> torch.Tensor:
    return _half(block, 0) * _five_bits(block[:, 4:]) + _half(block, 2)


def _q8_0(block: torch.Tensor) -> torch.Tensor:
    return _half(block, 0) * block[:, 2:].view(torch.int8)


def _q2_k(block: torch.Tensor) -> torch.Tensor:
    scales, low = block[:, :16], block[:, 16:80]
    scale, minimum = _half(block, 80) * (scales & 15), _half(block, 82) * (scales >> 4)
    return _scaled(_bits(low, 2, 32), scale, minimum)


def _q3_k(block: torch.Tensor) -> torch.Tensor:
    high, low, scales = block[:, :32], block[:, 32:96], block[:, 96:108]
    six_bits = _bits(scales[:, :8], 4, 8) | (_bits(scales[:, 8:], 2, 4) << 4)
    values = _bits(low, 2, 32) + 4.0 * _bits(high, 1, 32) - 4.0
    return _scaled(values, _half(block, 108) * (six_bits - 32.0))


def _q4_k(block: torch.Tensor) -> torch.Tensor:
    return _scaled(_bits(block[:, 16:], 4, 32), *_scales_k(block))


def _q5_k(block: torch.Tensor) -> torch.Tensor:
    high, low = block[:, 16:48], block[:, 48:]
    return _scaled(_bits(low, 4, 32) | (_bits(high, 1, 32) << 4), *_scales_k(block))


def _q6_k(block: torch.Tensor) -> torch.Tensor:
    low, high, scales = block[:, :128], block[:, 128:192], block[:, 192:208]
    values = (_bits(low, 4, 64) | (_bits(high, 2, 32) << 4)) - 32.0
    return _scaled(values, _half(block, 208) * scales.view(torch.int8))


def _iq4_nl(block: torch.Tensor) -> torch.Tensor:
    codes = _bits(block[:, 2:], 4, 16)
    # A tree of selections, as a table would be a constant to copy to the device each time.
    levels: list[float | torch.Tensor] = [float(level) for level in _NONLINEAR]
    for bit in range(4):
        is_set = ((codes >> bit) & 1).bool()
        pairs = zip(levels[::2], levels[1::2], strict=True)
        levels = [torch.where(is_set, one, zero) for zero, one in pairs]
    return _half(block, 0) * levels[0]


def _half(block: torch.Tensor, at: int) -> torch.Tensor:
    """Return the float16 number at byte `at` of each block: (block, 1), as float32."""
    low, high = block[:, at, None].to(torch.int16), block[:, at + 1, None].to(torch.int16)
    return (low | (high << 8)).view(torch.float16).float()


def _bits(packed: torch.Tensor, width: int, run: int) -> torch.Tensor:
    """Split bytes into fields of `width` bits: (block, byte) -> (block, byte * 8 / width).

    Each `run` of bytes holds the lowest bits of `run` values, then the next bits of the next.
    """
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    runs = packed.reshape(len(packed), -1, 1, run) >> shifts[:, None]
    return (runs & ((1 << width) - 1)).flatten(1)


def _five_bits(packed: torch.Tensor) -> torch.Tensor:
    """Join the fifth bits of 32 values, 4 bytes in order, with their low bits, 16 bytes."""
    fifth = _bits(packed[:, :4], 1, 1)
    return _bits(packed[:, 4:], 4, 16) | (fifth << 4)


def _scales_k(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scale and minimum of the eight groups of Q4_K and Q5_K, each (block, 8)."""
    scale, minimum, high = block[:, 4:8], block[:, 8:12], block[:, 12:16]
    scales = torch.cat([scale & 63, (high & 15) | ((scale >> 2) & 48)], dim=1)
    minima = torch.cat([minimum & 63, (high >> 4) | ((minimum >> 2) & 48)], dim=1)
    return _half(block, 0) * scales, _half(block, 2) * minima


def _scaled(
    values: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply the groups of `values` (block, 256) by `scale` (block, group), less `minimum`."""
    groups = values.view(*scale.shape, -1) * scale[:, :, None]
    return (groups if minimum is None else groups - minimum[:, :, None]).flatten(1)


TYPES: dict[int, Encoding] = {
    0: Plain(torch.float32),
    1: Plain(torch.float16),
    2: GgufBlocks("Q4_0", 32, 18, (0,), _q4_0),
    3: GgufBlocks("Q4_1", 32, 20, (0, 2), _q4_1),
    6: GgufBlocks("Q5_0", 32, 22, (0,), _q5_0),
    7: GgufBlocks("Q5_1", 32, 24, (0, 2), _q5_1),
    8: GgufBlocks("Q8_0", 32, 34, (0,), _q8_0),
    10: GgufBlocks("Q2_K", 256, 84, (80, 82), _q2_k),
    11: GgufBlocks("Q3_K", 256, 110, (108,), _q3_k),
    12: GgufBlocks("Q4_K", 256, 144, (0, 2), _q4_k),
    13: GgufBlocks("Q5_K", 256, 176, (0, 2), _q5_k),
    14: GgufBlocks("Q6_K", 256, 210, (208,), _q6_k),
    20: GgufBlocks("IQ4_NL", 32, 18, (0,), _iq4_nl),
    30: Plain(torch.bfloat16),
}
"""The types that are read, by their number in the file (`ggml_type` in ggml.h)."""
