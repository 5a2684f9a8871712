"""Slots on the device through which weights stream, copied ahead on a second CUDA stream.

Invariants:
- A slot's buffer holds the weights of `slot.params` or, while that is None, nothing of use. `params`
  is cleared before a copy is queued and set after, so an interrupted copy is made again.
- A copy into a slot waits on the copy stream for `slot.used`, recorded on the compute stream after
  the last kernel that reads the slot: weights in use are never overwritten.
- The compute stream waits for `slot.copied`, recorded on the copy stream after the copy: weights are
  never read before they are there.
- The host rewrites a staging buffer only after `stage.copied`, the event of the last copy out of it.
- At most one slot is acquired. It is in the window of the order that is prefetched, so `_fetch` does
  not choose it.
"""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from retouch.engine.memory.expansion import ExpansionBuffer
from retouch.engine.memory.flat_params import FlatParams
from retouch.engine.memory.param_view import Layout

STAGES = 4
STAGE_BYTES = 32 << 20
"""Of pinned memory, for weights that are not pinned themselves."""


@dataclass
class _StagingBuffer:
    """Pinned memory through which pageable memory is copied."""

    buffer: torch.Tensor
    copied: Any = None


@dataclass(eq=False)
class _Slot:
    """A buffer on the device, and its weights as views by layout."""

    buffer: torch.Tensor
    params: FlatParams | None = None
    copied: Any = None
    used: Any = None
    views: dict[Layout, list[nn.Parameter]] = field(default_factory=dict)


class PrefetchRing:
    """Brings weights to the device in an order known ahead.

    The slots are allocated once, so streaming never calls the allocator. On a CPU the copies are real
    and there is nothing to wait for. Packed weights arrive packed; `expansion` expands them.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        slots: int,
        slot_bytes: int,
        expansion: ExpansionBuffer | None = None,
    ) -> None:
        self._expansion = expansion
        self._on_gpu = device.type == "cuda"
        cuda: Any = torch.cuda
        self._copies: Any = cuda.Stream(device) if self._on_gpu else None
        self._slots = [
            _Slot(torch.empty(slot_bytes, dtype=torch.uint8, device=device)) for _ in range(slots)
        ]
        if self._copies:  # pragma: no cover - needs a GPU
            # The allocator may hand out memory that queued kernels still read.
            self._copies.wait_stream(torch.cuda.current_stream())
        stages = torch.empty(STAGES * STAGE_BYTES, dtype=torch.uint8, pin_memory=self._on_gpu)
        self._stages = itertools.cycle(
            [_StagingBuffer(buffer) for buffer in torch.split(stages, STAGE_BYTES)]
        )
        self._acquired: _Slot | None = None
        self.copied_bytes = 0

    def acquire(self, order: Sequence[FlatParams], at: int) -> None:
        """Bind the weights of `order[at]` on the device, and start copying those that follow.

        Releases what was acquired before.
        """
        self.release()
        window = order[at : at + len(self._slots)]
        for params in window:
            self._fetch(params, keep=window)
        slot = next(slot for slot in self._slots if slot.params is window[0])
        if self._on_gpu:  # pragma: no cover - needs a GPU
            torch.cuda.current_stream().wait_event(slot.copied)
        if self._expansion and window[0].expanded_bytes:
            self._expansion.bind(window[0], slot.buffer)
        else:
            window[0].bind(self._views(slot, window[0]))
        self._acquired = slot

    def release(self) -> None:
        """Offload what was acquired; its slot is reused after the work queued so far."""
        slot, self._acquired = self._acquired, None
        if slot is None or slot.params is None:
            return
        slot.params.offload()
        if self._on_gpu:  # pragma: no cover - needs a GPU
            slot.used = torch.cuda.current_stream().record_event()

    def invalidate(self) -> None:
        """Treat every slot as empty, because the weights in storage have changed."""
        self.release()
        for slot in self._slots:
            slot.params = None

    def _fetch(self, params: FlatParams, *, keep: Sequence[FlatParams]) -> None:
        if any(slot.params is params for slot in self._slots):
            return
        slot = next(slot for slot in self._slots if slot.params is None or slot.params not in keep)
        pieces = params.pieces
        slot.params = None
        with torch.cuda.stream(self._copies) if self._on_gpu else nullcontext():
            if self._on_gpu and slot.used is not None:  # pragma: no cover - needs a GPU
                self._copies.wait_event(slot.used)
            for place, piece in pieces:
                self._copy(piece, slot.buffer[place])
            if self._on_gpu:  # pragma: no cover - needs a GPU
                slot.copied = self._copies.record_event()
        slot.params = params
        self.copied_bytes += params.size_bytes

    def _copy(self, storage: torch.Tensor, there: torch.Tensor) -> None:
        """Queue a copy; of pageable memory in pieces, one being staged while another is copied."""
        if storage.is_pinned():  # pragma: no cover - needs a GPU
            there.copy_(storage, non_blocking=True)
            return
        for part, into in zip(
            torch.split(storage, STAGE_BYTES), torch.split(there, STAGE_BYTES), strict=True
        ):
            stage = next(self._stages)
            if stage.copied is not None:  # pragma: no cover - needs a GPU
                stage.copied.synchronize()
            piece = stage.buffer[: len(part)]
            piece.copy_(part)
            into.copy_(piece, non_blocking=True)
            if self._on_gpu:  # pragma: no cover - needs a GPU
                stage.copied = self._copies.record_event()

    def _views(self, slot: _Slot, params: FlatParams) -> list[nn.Parameter]:
        views = slot.views.get(params.layout)
        if views is None:
            views = slot.views[params.layout] = params.view_in(slot.buffer)
        return views
