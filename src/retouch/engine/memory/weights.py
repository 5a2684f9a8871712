"""Own a pipeline's weights: resident on the device, or streamed to it while in use."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from retouch.engine.memory.expansion import ExpansionBuffer
from retouch.engine.memory.flat_params import (
    Encode,
    FlatParams,
    ModelParams,
    PackedWeight,
    flatten_pipeline,
    keep_plain,
)
from retouch.engine.memory.host_memory import map_host, pin, unpin
from retouch.engine.memory.plan import GIB, Plan
from retouch.engine.memory.prefetch import PrefetchRing
from retouch.engine.memory.probe import measure_host
from retouch.engine.memory.shared_memory import SharedMemory
from retouch.engine.packing.rows import Fp8Operand
from retouch.errors import ModelError


class Weights:
    """Owns the weights of a pipeline's modules, and has those in use on `device`.

    The transformer's blocks and modulation are on the device only while `blocks` and `modulations`
    yield them; the text encoder's layers come while they run. Everything else stays there. `encode`
    says which weights of blocks and layers are kept packed: they are expanded when they come.
    `mapped` has the bytes of the modulation's weights in their files, by path, or nothing: what is
    there is not copied to host memory. The others on the host live in `shared` memory, if there is
    any, which has a unit for each of the `params`.
    """

    def __init__(
        self,
        *,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        plan: Plan,
        device: torch.device,
        encode: Encode = keep_plain,
        mapped: Mapping[str, torch.Tensor] = MappingProxyType({}),
        shared: SharedMemory | None = None,
    ) -> None:
        self.transformer, self.vae, self.text_encoder = transformer, vae, text_encoder
        self.plan = plan
        self._mapped = mapped
        self._shared = shared
        self._shared_units: dict[FlatParams, int] = {}
        self.device = device
        self.params: ModelParams = flatten_pipeline(
            transformer=transformer, vae=vae, text_encoder=text_encoder, encode=encode
        )
        for module in (transformer, vae, text_encoder):
            module.requires_grad_(False)
        self._streamed_blocks: list[FlatParams] = []
        self._streamed_layers: list[FlatParams] = []
        self._pinned: list[FlatParams] = []
        self._unpin = weakref.finalize(self, _unpin, self._pinned)
        self._unpin.atexit = False
        self._ring: PrefetchRing | None = None
        self._expansion: ExpansionBuffer | None = None

    def allocate(self) -> None:
        """Allocate storage where the plan says, and copy the weights there if they have values.

        Weights on `meta` are to be read after this into `destinations` and what `filling_shared`
        yields, and then `pin` be called. Those in shared memory must be on `meta`.
        """
        self._streamed_blocks = [self.params.blocks[i] for i in sorted(self.plan.streamed_blocks)]
        self._streamed_layers = [self.params.layers[i] for i in sorted(self.plan.streamed_layers)]
        on_host = {*self._streamed_blocks, *self._streamed_layers}
        if self.plan.slots:
            on_host.update(self.params.modulation, self.params.host)
        for at, params in enumerate(self.params):
            if params in on_host and self._mapped and params in self.params.modulation:
                params.map(self._mapped)
                continue
            params.allocate(
                self._map_host(at, params)
                if params in on_host
                else torch.empty(params.size_bytes, dtype=torch.uint8, device=self.device)
            )
        for module in (self.transformer, self.vae, self.text_encoder):
            for buffer in module.buffers():
                buffer.data = buffer.data.to(self.device)
        if expanded_bytes := self.params.expanded_bytes:
            self._expansion = ExpansionBuffer(self.device, expanded_bytes)
        if self.plan.slots:
            self._ring = PrefetchRing(
                self.device,
                slots=self.plan.slots,
                slot_bytes=self.plan.slot_bytes,
                expansion=self._expansion,
            )
        self._hook_text_encoder()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the plain weights in storage by path, such as `vae.encoder.conv_in.weight`."""
        return {path: tensor for params in self.params for path, tensor in params.tensors.items()}

    def destinations(self) -> dict[str, torch.Tensor | PackedWeight]:
        """Return where each weight lives that is not in shared memory, by path."""
        return _list_destinations(unit for unit in self.params if unit not in self._shared_units)

    @contextmanager
    def filling_shared(self) -> Iterator[dict[str, torch.Tensor | PackedWeight]]:
        """Yield where those in shared memory live that no process has read: this one must.

        Other processes wait meanwhile.
        """
        if not self._shared or not self._shared_units:
            yield {}
            return
        with self._shared.locked():
            filled = self._shared.filled
            empty = {unit: at for unit, at in self._shared_units.items() if not filled[at]}
            yield _list_destinations(empty)
            for at in empty.values():
                filled[at] = 1

    def pin(self) -> None:
        """Pin what streams in every edit, so that the GPU copies it without the CPU.

        One after the other: the driver runs no two at once, nor a copy meanwhile.

        Raises:
            ModelError: the system does not allow it.
        """
        if self.device.type != "cuda":
            return
        self._pin([*self._streamed_blocks, *self._streamed_layers])

    def _pin(self, streamed: Sequence[FlatParams]) -> None:
        for at, params in enumerate(streamed):
            if not pin(params):
                missing = sum(params.size_bytes for params in streamed[at:])
                raise ModelError(f"{missing / GIB:.1f} GiB of host memory could not be pinned")
            self._pinned.append(params)

    @property
    def multiplies_fp8(self) -> bool:
        """Whether the transformer's blocks make fp8 products."""
        views = (view for params in self.params.blocks for view in params.views)
        return any(isinstance(view.encoding, Fp8Operand) for view in views)

    @property
    def copied_bytes(self) -> int:
        """Bytes streamed to the device so far."""
        return self._ring.copied_bytes if self._ring else 0

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the transformer's blocks in order, each on the device (without modulation) while yielded."""
        order = self._streamed_blocks * 2
        at = 0  # never in the second half, which stands for the next step
        for number, block in enumerate(self.transformer.transformer_blocks):
            params = self.params.blocks[number]
            if number in self.plan.streamed_blocks:
                self._acquire(order, at)
                at += 1
            else:
                self._expand(params)
            try:
                yield block
            finally:
                self._leave(params)

    def modulations(self) -> Iterator[tuple[Any, Any]]:
        """Yield each block's `img_mod` and `txt_mod` in order, each pair on the device while yielded."""
        for number, block in enumerate(self.transformer.transformer_blocks):
            params = self.params.modulation[number]
            if self._ring:
                self._acquire(self.params.modulation, number)
            else:
                self._expand(params)
            try:
                yield block.img_mod, block.txt_mod
            finally:
                self._leave(params)

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the transformer's weights to `dtype` in their storage. Nothing is read again.

        Those in shared memory leave it before. The modulation keeps its type: it is converted each
        time a table is made of it.

        Raises:
            ModelError: the host has no room for weights of this process alone.
        """
        if self._ring:
            self._ring.invalidate()
        units = [
            params
            for params in self.params
            if params.name.partition(".")[0] == "transformer"
            and params not in self.params.modulation
        ]
        self._unshare([unit for unit in units if unit in self._shared_units])
        for params in units:
            params.cast(dtype)

    def _unshare(self, units: Sequence[FlatParams]) -> None:
        """Copy units to private memory: other processes use the bytes as they are."""
        if sum(unit.size_bytes for unit in units) > measure_host():
            raise ModelError("the host is short of memory for weights in another precision")
        for unit in units:
            if pinned := unit in self._pinned:
                self._pinned.remove(unit)
                unpin(unit)
            unit.move(map_host(unit.size_bytes))
            del self._shared_units[unit]
            if pinned:
                self._pin([unit])

    def release(self) -> None:
        """Return an edit's memory to the system; call it after each edit, also a failed one."""
        self._release()
        if self.device.type == "cuda":  # pragma: no cover - needs a GPU
            torch.cuda.empty_cache()

    def _map_host(self, at: int, params: FlatParams) -> torch.Tensor:
        if not self._shared:
            return map_host(params.size_bytes)
        self._shared_units[params] = at
        return torch.frombuffer(self._shared.unit(at), dtype=torch.uint8)

    def close(self) -> None:
        """Unpin the host's memory, as garbage collection does. The weights must not be used afterwards."""
        self._unpin()
        self._ring = None

    def _acquire(self, order: Sequence[FlatParams], at: int) -> None:
        if self._ring is None:
            raise LookupError("the weights are not allocated")
        self._ring.acquire(order, at)

    def _release(self) -> None:
        if self._ring:
            self._ring.release()

    def _expand(self, params: FlatParams) -> None:
        """Expand resident weights, if they are packed."""
        if self._expansion and params.expanded_bytes and params.storage is not None:
            self._expansion.bind(params, params.storage)

    def _leave(self, params: FlatParams) -> None:
        """Offload weights after they ran: those that came, and those that were expanded."""
        self._release()
        if params.expanded_bytes:
            params.offload()

    def _hook_text_encoder(self) -> None:
        """Bring or expand each layer that needs it just before it runs."""
        model = self.text_encoder.model
        places = {number: at for at, number in enumerate(sorted(self.plan.streamed_layers))}
        for number, layer in enumerate([*model.visual.blocks, *model.language_model.layers]):
            params = self.params.layers[number]
            if number in places:
                layer.register_forward_pre_hook(
                    lambda *_, at=places[number]: self._acquire(self._streamed_layers, at)
                )
            elif params.expanded_bytes:
                layer.register_forward_pre_hook(lambda *_, params=params: self._expand(params))
            else:
                continue
            layer.register_forward_hook(lambda *_, params=params: self._leave(params))


def _list_destinations(units: Iterable[FlatParams]) -> dict[str, torch.Tensor | PackedWeight]:
    return {path: into for unit in units for path, into in (unit.tensors | unit.packed).items()}


def _unpin(pinned: list[FlatParams]) -> None:
    for params in pinned:
        unpin(params)
    pinned.clear()
