"""Estimate how long an edit takes on a card, from its published figures. Nothing here is measured.

The one exception is the share of the peak that is reached: 0.6, as the full model does on an H100.
"""

from dataclasses import dataclass

from retouch.engine.memory.plan import GIB, EditShape, Plan, Sizes

SHARE = 0.6
"""Of the peak of tensor cores and of memory bandwidth."""
USABLE = 0.93
"""Of a card's memory: the driver and the CUDA context take the rest."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its data sheet: memory, dense 16-bit TFLOP/s, bandwidths of memory and bus."""

    memory_gib: float
    tflop_per_s: float
    memory_gib_per_s: float
    bus_gib_per_s: float = 20.0

    @property
    def free_gib(self) -> float:
        """Memory that is free when nothing else runs."""
        return self.memory_gib * USABLE


CARDS = {
    "A4000": Card(16, 77, 417),
    "L4": Card(24, 60, 279),  # 121 TFLOP/s that its 72 W do not sustain
    "4090": Card(24, 165, 939),
    "A6000": Card(48, 155, 715),
    "L40S": Card(48, 362, 805),
    "A100": Card(80, 312, 1900),
    "H100": Card(80, 989, 3120, bus_gib_per_s=50.0),
}


def estimate_edit_s(
    plan: Plan, sizes: Sizes, shape: EditShape, card: Card, *, steps: int, guided: bool
) -> float:
    """Estimate the seconds of denoising: computing or copying, whichever is longer, and expanding."""
    branches = 2 if guided else 1
    compute_s = branches * shape.forward_tflop() / (SHARE * card.tflop_per_s)
    copied = sum(sizes.blocks[i] for i in plan.streamed_blocks)
    expanded = len(sizes.blocks) * sizes.expansion + sum(sizes.blocks) if sizes.expansion else 0
    copy_s = copied / GIB / card.bus_gib_per_s
    return steps * (max(compute_s, copy_s) + expanded / GIB / (SHARE * card.memory_gib_per_s))
