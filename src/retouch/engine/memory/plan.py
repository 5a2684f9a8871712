"""From the sizes of weights and memories to a plan: what stays on the GPU, what passes through it.

Pure arithmetic on bytes: it also answers for a card that is not there.
"""

from dataclasses import dataclass

from retouch.engine.memory.probe import GIB, MIB, FreeMemory
from retouch.errors import ModelError

RING_SLOTS = 3
"""One in use and two on their way; two are enough where the copy is faster than the computing."""
RESERVE_BYTES = 1024 * MIB
"""What the allocator loses to rounding and gaps, and libraries take for their own."""
HOST_RESERVE_BYTES = 3 * GIB
"""What the process takes beside the weights."""
BUS_GIB_PER_S = 20.0
"""What a PCIe 4 x16 slot moves from pinned memory; only the forecast reads it."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights, by what may be done with them.

    `blocks` and `layers` are the parts that can stream, in order: the transformer's blocks without
    their modulation, and the text encoder's vision and language layers. `fixed` is always on the
    GPU, `modulation` (of each block) and `host` (the table of words) never stay there.
    """

    blocks: tuple[int, ...]
    layers: tuple[int, ...]
    modulation: tuple[int, ...]
    fixed: int
    host: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum((*self.blocks, *self.layers, *self.modulation, self.fixed, self.host))


FULL = Sizes(
    blocks=(453_096_448,) * 60,
    layers=(39_404_544,) * 32 + (466_115_584,) * 28,
    modulation=(226_566_144,) * 60,
    fixed=427_004_416,
    host=1_089_994_752,
)
"""Of the full model in 16 bits, without the output layer of its text encoder, which nobody reads."""


@dataclass(frozen=True)
class EditShape:
    """The largest edit to make room for: pixels of the result and of the condition, text tokens."""

    area_px: int = 1024 * 1024
    condition_area_px: int = 1024 * 1024
    text_tokens: int = 1440 + 512

    def activation_bytes(self) -> int:
        """Estimate the most that an edit takes beside the weights, at the real model's widths.

        A block holds about 24 tensors of 3072 half-precision values a token at its widest (the
        feed-forward alone 8), the autoencoder about 1700 bytes a pixel in its last layers.
        """
        tokens = (self.area_px + self.condition_area_px) // 256 + self.text_tokens
        denoise = tokens * 3072 * 2 * 24
        decode = max(self.area_px, self.condition_area_px) * 1700
        return max(denoise, decode)

    def forward_tflop(self) -> float:
        """Count one pass of the real transformer: 60 blocks of 226.5 M weights, and attention."""
        image = (self.area_px + self.condition_area_px) // 256
        tokens = image + self.text_tokens
        return (2 * 113.25e6 * 60 * tokens + 4 * tokens**2 * 3072 * 60) / 1e12


@dataclass(frozen=True)
class Plan:
    """What stays and what streams. `streamed_blocks` and `streamed_layers` are indices.

    `pinned_bytes` and `host_bytes` are the host memory that stays taken: pinned for what streams,
    and all in all. `peak_bytes` is the most GPU memory that an edit is expected to take. Without
    slots nothing streams at all, not even the modulation.
    """

    name: str
    streamed_blocks: frozenset[int] = frozenset()
    streamed_layers: frozenset[int] = frozenset()
    slot_bytes: int = 0
    slots: int = 0
    resident_bytes: int = 0
    pinned_bytes: int = 0
    host_bytes: int = 0
    peak_bytes: int = 0


RESIDENT = Plan("resident")
"""Everything where it is: on a CPU, or placed by somebody else."""


def make_plan(sizes: Sizes, picture: EditShape, memory: FreeMemory) -> Plan:
    """Keep as much on the GPU as fits, and stream the rest.

    The text encoder's layers go first: they are needed once an edit, a block in every step.

    Raises:
        ModelError: it does not fit; the message says how much of which memory is missing.
    """
    over = picture.activation_bytes() + RESERVE_BYTES
    candidates = [_plan_keeping(sizes, over, kept=len(sizes.blocks), keeps_layers=True)]
    for slots in (RING_SLOTS, 2):
        bare = _plan_keeping(sizes, over, kept=0, keeps_layers=False, slots=slots)
        room = memory.gpu_bytes - bare.peak_bytes
        kept = min(len(sizes.blocks), max(0, room) // max(sizes.blocks))
        candidates.append(_plan_keeping(sizes, over, kept=kept, keeps_layers=False, slots=slots))
    plan = next((one for one in candidates if one.peak_bytes <= memory.gpu_bytes), None)
    lacking = []
    if plan is None:
        plan = candidates[-1]
        lacking.append(_shortfall("GPU", need=plan.peak_bytes, free=memory.gpu_bytes))
    if plan.host_bytes + HOST_RESERVE_BYTES > memory.host_bytes:
        lacking.append(
            _shortfall("host", need=plan.host_bytes + HOST_RESERVE_BYTES, free=memory.host_bytes)
        )
    if lacking:
        raise ModelError("not enough memory: " + ", and ".join(lacking))
    return plan


def _plan_keeping(
    sizes: Sizes, over: int, *, kept: int, keeps_layers: bool, slots: int = 2
) -> Plan:
    """Lay out a plan that keeps `kept` blocks, and the text encoder's layers or none of them."""
    count = len(sizes.blocks)
    streamed = evenly_spaced(count - kept, of=count)
    layers = frozenset[int]() if keeps_layers else frozenset(range(len(sizes.layers)))
    moving = [sizes.blocks[i] for i in streamed] + [sizes.layers[i] for i in layers]
    hosted = sum(moving) + sum(sizes.modulation) + sizes.host
    slot_bytes = max([*moving, *sizes.modulation])
    resident = sizes.total - hosted
    if streamed:
        name = f"{len(streamed)} of {count} blocks streamed"
    else:
        name = "text encoder streamed" if layers else "resident"
    return Plan(
        name=name,
        streamed_blocks=streamed,
        streamed_layers=layers,
        slot_bytes=slot_bytes,
        slots=slots,
        resident_bytes=resident,
        pinned_bytes=sum(moving),
        host_bytes=hosted,
        peak_bytes=resident + slots * slot_bytes + over,
    )


def evenly_spaced(count: int, *, of: int) -> frozenset[int]:
    """Choose `count` of `of` places, as evenly as can be: each copy hides behind its neighbours.

    >>> sorted(spread(3, of=9)), sorted(spread(2, of=2)), sorted(spread(0, of=5))
    ([1, 4, 7], [0, 1], [])
    """
    return frozenset((2 * k + 1) * of // (2 * count) for k in range(count))


def _shortfall(which: str, *, need: int, free: int) -> str:
    return (
        f"{(need - free) / GIB:.1f} GiB of {which} memory are missing "
        f"({need / GIB:.1f} needed, {free / GIB:.1f} free)"
    )
