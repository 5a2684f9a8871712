"""From the sizes of weights and memories to a plan: what stays on the GPU, what passes through it.

Pure arithmetic on bytes: it also answers for a card that is not there.
"""

from dataclasses import dataclass

GIB = 1 << 30
MIB = 1 << 20
RING_SLOTS = 3
"""One in use and two on their way; two are enough where the copy is faster than the computing."""
RESERVE_BYTES = 512 * MIB
"""What the allocator loses to rounding and gaps, and libraries take for their own."""
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


@dataclass(frozen=True)
class Picture:
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


@dataclass(frozen=True)
class Plan:
    """What stays and what streams. `streamed_blocks` and `streamed_layers` are indices.

    `pinned_bytes` and `host_bytes` are the host memory that stays taken: pinned for what streams,
    and all in all. `peak_bytes` is the most GPU memory an edit is expected to take.
    """

    name: str
    streamed_blocks: frozenset[int]
    streamed_layers: frozenset[int]
    slot_bytes: int
    slots: int
    resident_bytes: int
    pinned_bytes: int
    host_bytes: int
    peak_bytes: int
    streams_modulation: bool

    @property
    def streams(self) -> bool:
        """Whether anything passes through the GPU."""
        return self.slots > 0


RESIDENT = Plan("resident", frozenset(), frozenset(), 0, 0, 0, 0, 0, 0, streams_modulation=False)
"""Everything where it is: a CPU, or modules that somebody else placed."""
