"""Four bits a value: NF4, in blocks of 64 with their largest magnitude (Dettmers et al., QLoRA, 2023)."""

from dataclasses import dataclass
from math import prod

import torch

BLOCK = 64
_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of the normal distribution, appendix E of the paper (bitsandbytes/functional.py)."""
_TABLE_BYTES = 4 * len(_LEVELS)


@dataclass(frozen=True, slots=True)
class Nf4:
    """A table of 16 float32 values, then a float16 factor for each block, then the codes.

    The table holds the levels times the tensor's largest magnitude, so factors are 0 to 1: they
    cannot overflow, and `expand` needs no constants on the device. The first half of a block's codes
    are the low bits of its 32 bytes, the second half the high bits.
    """

    name: str = "nf4"

    def size_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a weight of `shape`, whose values make whole blocks of 64.

        >>> Nf4().size_bytes((2, 64))
        132
        """
        count = prod(shape)
        if not count or count % BLOCK:
            raise ValueError(f"{self.name} needs a multiple of {BLOCK} values, not {count}")
        return _TABLE_BYTES + count // BLOCK * (2 + BLOCK // 2)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """Return `weight` with each value at the nearest level of its block, as bytes."""
        packed = torch.empty(
            self.size_bytes(tuple(weight.shape)), dtype=torch.uint8, device=weight.device
        )
        table, factors, codes = _split(packed)
        blocks = weight.reshape(-1, BLOCK).float()
        largest = blocks.abs().amax()
        levels = torch.tensor(_LEVELS, device=weight.device)
        table.copy_(levels * largest)
        factors.copy_(blocks.abs().amax(1) / torch.where(largest > 0, largest, 1.0))
        spans = factors.float()[:, None] * largest  # as rounded
        nearest = torch.bucketize(
            blocks / torch.where(spans > 0, spans, 1.0), (levels[1:] + levels[:-1]) / 2
        ).to(torch.uint8)
        low, high = nearest.chunk(2, dim=1)
        codes.copy_(low | (high << 4))
        return packed

    def expand(self, packed: torch.Tensor, out: torch.Tensor, factor: float = 1.0) -> None:
        """Write each code's level times its block's factor and `factor` to `out`."""
        table, factors, codes = _split(packed)
        shifts = 4 * torch.arange(2, dtype=torch.uint8, device=packed.device)[:, None]
        numbers = (codes[:, None] >> shifts) & 15  # (block, byte) -> (block, half, byte)
        values = table[numbers.int()] * (factors.float() * factor)[:, None, None]
        out.copy_(values.view(out.shape))


NF4 = Nf4()


def _split(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return views of the table (16,), the factors (block,) and the codes (block, 32)."""
    count = (len(packed) - _TABLE_BYTES) // (2 + BLOCK // 2)
    start = _TABLE_BYTES + 2 * count
    factors = packed[_TABLE_BYTES:start].view(torch.float16)
    return packed[:_TABLE_BYTES].view(torch.float32), factors, packed[start:].view(count, -1)
