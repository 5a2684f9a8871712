"""Plan from the sizes of weights and memories what stays on the GPU and what streams through it.

Pure arithmetic on bytes, so it also answers for a GPU that is not there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from retouch.engine.memory.shared_memory import HostShare
from retouch.errors import ModelError

GIB = 1 << 30
RING_SLOTS = 3
"""One in use and two being copied; two are enough where copying is faster than computing."""
RESERVE_BYTES = 1 * GIB
"""Lost by the allocator to rounding and fragmentation, or taken by libraries."""
HOST_RESERVE_BYTES = 3 * GIB
"""Taken by the process beside the weights."""
MAX_IMAGES = 3
MAX_AREA_PX = 2048 * 2048
"""The largest result that a request can ask for."""
AREA_STEP_PX = 1 << 14
WHOLE_AREA_PX = 1024 * 1024
"""The autoencoder runs larger images in stripes."""
STRIPE_AREA_PX = 3 << 18
"""Of such a stripe: with what else a large image takes, no more than an image of `WHOLE_AREA_PX`."""
BUS_GIB_PER_S = 20.0
"""Bandwidth of a PCIe 4 x16 slot from pinned memory; used in reports only."""


@dataclass(frozen=True)
class FreeMemory:
    """Free bytes of the GPU and of the host.

    Those of the host are for one process: the weights that it has in a `share` count in equal parts
    for all of its processes.
    """

    gpu_bytes: int
    host_bytes: int
    share: HostShare | None = None


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model's weights, by what may be done with them.

    `blocks` and `layers` can stream, in order: the transformer's blocks without their modulation,
    and the text encoder's vision and language layers. `fixed` is always on the GPU. `modulation`
    (of each block) and `host` (the token embedding) stay there only where everything does.
    `expansion` is the buffer in which packed blocks and layers are expanded, always on the GPU. With
    `modulation_mapped` the modulation takes no host memory: it is read from its files.
    """

    blocks: tuple[int, ...]
    layers: tuple[int, ...]
    modulation: tuple[int, ...]
    fixed: int
    host: int
    expansion: int = 0
    modulation_mapped: bool = False

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return sum((*self.blocks, *self.layers, *self.modulation, self.fixed, self.host))


FULL = Sizes(
    blocks=(453_096_448,) * 60,
    layers=(39_404_544,) * 32 + (466_115_584,) * 28,
    modulation=(226_566_144,) * 60,
    fixed=427_004_416,
    host=1_089_994_752,
)
"""The full model in 16 bits, without the text encoder's output layer, which is not used."""


@dataclass(frozen=True)
class EditShape:
    """The largest edit to plan for: pixels of the result, images, pixels of each, text tokens.

    `adapter_bytes` is what the terms of its adapters take.
    """

    area_px: int = 1024 * 1024
    condition_area_px: int = 1024 * 1024
    text_tokens: int = 1440 + 512
    images: int = 1
    adapter_bytes: int = 0

    @property
    def image_tokens(self) -> int:
        """Tokens of the result and of every condition image, of 16 x 16 pixels each."""
        return (self.area_px + self.images * self.condition_area_px) // 256

    def activation_bytes(self) -> int:
        """Estimate the peak that an edit takes beside the weights, at the full model's widths.

        A block holds about 24 tensors of 3072 half-precision values a token at its widest (the
        feed-forward alone 8). The autoencoder, which takes one image at a time, takes about 1700 bytes
        a pixel in its last layers; in stripes as much of a stripe, beside 120 bytes a pixel of what
        these layers get and make, or before them 600 at most.
        """
        tokens = self.image_tokens + self.text_tokens
        denoise = tokens * 3072 * 2 * 24
        area_px = max(self.area_px, self.condition_area_px)
        decode = min(area_px, WHOLE_AREA_PX) * 1700  # smaller images must fit as well
        if area_px > WHOLE_AREA_PX:
            decode = max(decode, area_px * 600, area_px * 120 + STRIPE_AREA_PX * 1700)
        return max(denoise, decode) + self.adapter_bytes

    def forward_tflop(self) -> float:
        """Count one pass of the full transformer: 60 blocks of 226.5 M weights, and attention."""
        tokens = self.image_tokens + self.text_tokens
        return (2 * 113.25e6 * 60 * tokens + 4 * tokens**2 * 3072 * 60) / 1e12


@dataclass(frozen=True)
class Plan:
    """What stays on the GPU and what streams. `streamed_blocks` and `streamed_layers` are indices.

    `pinned_bytes` is pinned host memory, for what streams; `host_bytes` is all host memory that the
    weights keep. `peak_bytes` is the most GPU memory that an edit is expected to take. Without slots
    nothing streams, not even the modulation. `max_areas_px` has the largest result that fits from one
    image, from two and so on. `quantization` names how blocks and layers are stored.
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
    max_areas_px: tuple[int, ...] = (MAX_AREA_PX,) * MAX_IMAGES
    quantization: str = "none"


RESIDENT = Plan("resident")
"""All weights where they are: on a CPU, or placed by the caller."""


def make_plan(sizes: Sizes, shape: EditShape, memory: FreeMemory) -> Plan:
    """Keep as much on the GPU as fits, and stream the rest.

    First to go to the host is the modulation, needed once a schedule; then the text encoder's layers
    one by one, needed once an edit; then blocks, needed in every step. Where the images of `shape` do
    not fit, the plan is for fewer.

    Raises:
        ModelError: it does not fit; the message says which memory is short by how much.
    """
    try:
        return _make_plan(sizes, shape, memory)
    except ModelError:
        if shape.images == 1:
            raise
    return make_plan(sizes, replace(shape, images=shape.images - 1), memory)


def require_host(sizes: Sizes, memory: FreeMemory) -> None:
    """Require host memory for all weights and their expansion: without a GPU they stay there.

    Raises:
        ModelError: it does not fit; the message says how much is needed and how much is free.
    """
    need = sizes.total + sizes.expansion
    if need > memory.host_bytes:
        short = _shortfall("host", need=need, free=memory.host_bytes)
        raise ModelError(f"not enough memory without a GPU: {short}")


def _make_plan(sizes: Sizes, shape: EditShape, memory: FreeMemory) -> Plan:
    over = shape.activation_bytes() + RESERVE_BYTES
    shortfalls = []
    for plan in _candidates(sizes, over):
        if plan.peak_bytes <= memory.gpu_bytes:
            break
    else:
        shortfalls.append(_shortfall("GPU", need=plan.peak_bytes, free=memory.gpu_bytes))
    processes = memory.share.processes if memory.share else 1
    need = plan.host_bytes // processes + HOST_RESERVE_BYTES
    if need > memory.host_bytes:
        shortfalls.append(_shortfall("host", need=need, free=memory.host_bytes))
    if shortfalls:
        raise ModelError("not enough memory: " + ", and ".join(shortfalls))
    room_bytes = memory.gpu_bytes - plan.peak_bytes + shape.activation_bytes()
    return replace(plan, max_areas_px=largest_areas_px(shape, room_bytes))


def largest_areas_px(shape: EditShape, room_bytes: int) -> tuple[int, ...]:
    """Return the largest result that takes `room_bytes` from one image, from two and so on.

    It ends where not even the smallest result fits.

    >>> largest_areas_px(EditShape(), 8 << 30) == (MAX_AREA_PX,) * 3
    True
    >>> largest_areas_px(EditShape(), 2 << 30)
    (2179072, 1130496, 81920)
    """
    areas_px = sorted({shape.area_px, *range(AREA_STEP_PX, MAX_AREA_PX + 1, AREA_STEP_PX)})
    largest_px = []
    for images in range(1, MAX_IMAGES + 1):
        shapes = (replace(shape, images=images, area_px=area_px) for area_px in reversed(areas_px))
        fitting = (fits.area_px for fits in shapes if fits.activation_bytes() <= room_bytes)
        if area_px := next(fitting, 0):
            largest_px.append(area_px)
    return tuple(largest_px)


def _candidates(sizes: Sizes, over: int) -> Iterator[Plan]:
    """Yield plans from the fastest to the smallest."""
    yield _lay_out(sizes, over)
    for slots in (RING_SLOTS, 2):
        for layers in range(len(sizes.layers) + 1):
            yield _lay_out(sizes, over, slots=slots, layers=layers)
        for blocks in range(1, len(sizes.blocks) + 1):
            yield _lay_out(sizes, over, slots=slots, layers=len(sizes.layers), blocks=blocks)


def _lay_out(sizes: Sizes, over: int, *, slots: int = 0, layers: int = 0, blocks: int = 0) -> Plan:
    """Plan to stream so many layers and blocks; without slots everything stays on the GPU."""
    streamed_blocks = evenly_spaced(blocks, of=len(sizes.blocks))
    streamed_layers = evenly_spaced(layers, of=len(sizes.layers))
    streamed = [sizes.blocks[i] for i in streamed_blocks]
    streamed += [sizes.layers[i] for i in streamed_layers]
    hosted = sum(streamed) + (sum(sizes.modulation) + sizes.host if slots else 0)
    slot_bytes = max([*streamed, *sizes.modulation]) if slots else 0
    name = "resident"
    if blocks:
        name = f"{blocks} of {len(sizes.blocks)} blocks streamed"
    elif layers:
        whole = layers == len(sizes.layers)
        count = "" if whole else f"{layers} of {len(sizes.layers)} layers of the "
        name = f"{count}text encoder streamed"
    return Plan(
        name=name,
        streamed_blocks=streamed_blocks,
        streamed_layers=streamed_layers,
        slot_bytes=slot_bytes,
        slots=slots,
        resident_bytes=sizes.total - hosted,
        pinned_bytes=sum(streamed),
        host_bytes=hosted - (sum(sizes.modulation) if slots and sizes.modulation_mapped else 0),
        peak_bytes=sizes.total - hosted + slots * slot_bytes + sizes.expansion + over,
    )


def evenly_spaced(count: int, *, of: int) -> frozenset[int]:
    """Choose `count` of `of` places evenly, so that each copy hides behind its neighbours' computing.

    >>> sorted(evenly_spaced(3, of=9)), sorted(evenly_spaced(2, of=2)), sorted(evenly_spaced(0, of=5))
    ([1, 4, 7], [0, 1], [])
    """
    return frozenset((2 * k + 1) * of // (2 * count) for k in range(count))


def _shortfall(which: str, *, need: int, free: int) -> str:
    return (
        f"short of {which} memory by {(need - free) / GIB:.1f} GiB "
        f"({need / GIB:.1f} needed, {free / GIB:.1f} free)"
    )
