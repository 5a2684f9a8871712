"""Slots on the device through which weights stream: copied ahead on a second CUDA stream."""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from retouch.engine.memory.flat_params import FlatParams, Layout

STAGES = 4
STAGE_BYTES = 32 << 20
"""Of pinned memory, for what is not pinned itself."""


@dataclass
class _StagingBuffer:
    """Pinned memory that pageable memory is copied through. `copied` is the event of its last copy on."""

    buffer: torch.Tensor
    copied: Any = None


@dataclass(eq=False)
class _Slot:
    """A buffer on the device. `copied` and `used` are the events of its last copy and last use."""

    buffer: torch.Tensor
    unit: FlatParams | None = None
    copied: Any = None
    used: Any = None
    views: dict[Layout, list[nn.Parameter]] = field(default_factory=dict)


class PrefetchRing:
    """Brings units to the device in an order known ahead.

    The slots are taken once and kept, so streaming never asks the allocator for anything. On a CPU
    the copies are real and there is nothing to wait for.
    """

    def __init__(self, device: torch.device, *, slots: int, slot_bytes: int) -> None:
        self._on_gpu = device.type == "cuda"
        cuda: Any = torch.cuda
        self._copies: Any = cuda.Stream(device) if self._on_gpu else None
        self._slots = [
            _Slot(torch.empty(slot_bytes, dtype=torch.uint8, device=device)) for _ in range(slots)
        ]
        if self._copies:  # pragma: no cover - needs a GPU
            self._copies.wait_stream(torch.cuda.current_stream())
        stages = torch.empty(STAGES * STAGE_BYTES, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._stages = itertools.cycle(
            [_StagingBuffer(buffer) for buffer in torch.split(stages, STAGE_BYTES)]
        )
        self._entered: _Slot | None = None
        self.copied_bytes = 0

    def enter(self, order: Sequence[FlatParams], at: int) -> None:
        """Put the weights of `order[at]` on the device, and begin with the units that follow.

        The unit entered before is left.
        """
        self.leave()
        wanted = order[at : at + len(self._slots)]
        for unit in wanted:
            self._fetch(unit, keep=wanted)
        slot = next(slot for slot in self._slots if slot.unit is wanted[0])
        if self._on_gpu:  # pragma: no cover - needs a GPU
            torch.cuda.current_stream().wait_event(slot.copied)
        wanted[0].install(self._views(slot, wanted[0]))
        self._entered = slot

    def leave(self) -> None:
        """Let go of the unit that was entered last, once the work queued so far is done with it."""
        slot, self._entered = self._entered, None
        if slot is None or slot.unit is None:
            return
        slot.unit.go_home()
        if self._on_gpu:  # pragma: no cover - needs a GPU
            slot.used = torch.cuda.current_stream().record_event()

    def forget(self) -> None:
        """Treat every slot as empty: the weights at home were changed, or another order begins."""
        self.leave()
        for slot in self._slots:
            slot.unit = None

    def _fetch(self, unit: FlatParams, *, keep: Sequence[FlatParams]) -> None:
        if any(slot.unit is unit for slot in self._slots):
            return
        slot = next(slot for slot in self._slots if slot.unit is None or slot.unit not in keep)
        home = unit.home
        if home is None:
            raise LookupError(f"{unit.name} has no weights")
        slot.unit = None
        with torch.cuda.stream(self._copies) if self._on_gpu else nullcontext():
            if self._on_gpu and slot.used is not None:  # pragma: no cover - needs a GPU
                self._copies.wait_event(slot.used)
            self._copy(home, slot.buffer[: unit.size_bytes])
            if self._on_gpu:  # pragma: no cover - needs a GPU
                slot.copied = self._copies.record_event()
        slot.unit = unit
        self.copied_bytes += unit.size_bytes

    def _copy(self, home: torch.Tensor, there: torch.Tensor) -> None:
        """Copy memory that is not pinned piece by piece through some that is: one on its way, one made."""
        if home.is_pinned():  # pragma: no cover - needs a GPU
            there.copy_(home, non_blocking=True)
            return
        for part, into in zip(
            torch.split(home, STAGE_BYTES), torch.split(there, STAGE_BYTES), strict=True
        ):
            stage = next(self._stages)
            if stage.copied is not None:  # pragma: no cover - needs a GPU
                stage.copied.synchronize()
            piece = stage.buffer[: len(part)]
            piece.copy_(part)
            into.copy_(piece, non_blocking=True)
            if self._on_gpu:  # pragma: no cover - needs a GPU
                stage.copied = self._copies.record_event()

    def _views(self, slot: _Slot, unit: FlatParams) -> list[nn.Parameter]:
        views = slot.views.get(unit.layout)
        if views is None:
            views = slot.views[unit.layout] = unit.views(slot.buffer)
        return views
