"""Where a pipeline's weights live: `Weights` brings them to the device and takes them away again."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from retouch.engine.memory.flat_params import (
    FlatParams,
    ModelParams,
    flatten_pipeline,
    map_host,
    pin,
    unpin,
)
from retouch.engine.memory.plan import RESIDENT, Plan
from retouch.engine.memory.prefetch import PrefetchRing
from retouch.engine.memory.probe import GIB
from retouch.engine.single_frame import make_still
from retouch.errors import ModelError


class Weights:
    """Owns the modules of a pipeline, and has each part's weights on `device` while it is in use.

    A module is used only while it is yielded or borrowed. `transformer`, `vae` and `text_encoder`
    may be read for their configuration at any time.
    """

    def __init__(
        self, *, transformer: Any, vae: Any, text_encoder: Any, plan: Plan, device: torch.device
    ) -> None:
        self.transformer, self.vae, self.text_encoder = transformer, vae, text_encoder
        make_still(vae)
        self.plan = plan
        self.device = device
        self.parts: ModelParams = flatten_pipeline(
            transformer=transformer, vae=vae, text_encoder=text_encoder
        )
        for module in (transformer, vae, text_encoder):
            module.requires_grad_(False)
        self._moving_blocks: list[FlatParams] = []
        self._moving_layers: list[FlatParams] = []
        self._pinned: list[FlatParams] = []
        self._ring: PrefetchRing | None = None

    @classmethod
    def resident(cls, *, transformer: Any, vae: Any, text_encoder: Any) -> Self:
        """Take modules that stay where they are."""
        device = next(transformer.parameters()).device
        return cls(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            plan=RESIDENT,
            device=device,
        )

    def settle(self) -> None:
        """Give every unit the home that the plan says, with the weights it has, if it has any.

        Weights that are on `meta` are to be read into `tensors` after this, and then `pin` be called.
        """
        self._moving_blocks = [self.parts.blocks[i] for i in sorted(self.plan.streamed_blocks)]
        self._moving_layers = [self.parts.layers[i] for i in sorted(self.plan.streamed_layers)]
        on_host = {*self._moving_blocks, *self._moving_layers}
        if self.plan.slots:
            on_host.update(self.parts.modulation, self.parts.host)
        for unit in self.parts:
            unit.settle(
                map_host(unit.size_bytes)
                if unit in on_host
                else torch.empty(unit.size_bytes, dtype=torch.uint8, device=self.device)
            )
        for module in (self.transformer, self.vae, self.text_encoder):
            for buffer in module.buffers():
                buffer.data = buffer.data.to(self.device)
        if self.plan.slots:
            self._ring = PrefetchRing(
                self.device, slots=self.plan.slots, slot_bytes=self.plan.slot_bytes
            )
            self._hook_text_encoder()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all weights at home, by path: `vae.encoder.conv_in.weight`."""
        return {path: tensor for unit in self.parts for path, tensor in unit.tensors.items()}

    def pin(self) -> None:
        """Pin what streams in every edit, so that the GPU fetches it by itself.

        One after the other: the driver does no two at once, nor a copy meanwhile.

        Raises:
            ModelError: the system does not allow it.
        """
        if self.device.type != "cuda":
            return
        moving = [*self._moving_blocks, *self._moving_layers]
        for at, unit in enumerate(moving):
            if not pin(unit):
                lacking = sum(unit.size_bytes for unit in moving[at:])
                raise ModelError(f"{lacking / GIB:.1f} GiB of host memory could not be pinned")
            self._pinned.append(unit)

    @property
    def copied_bytes(self) -> int:
        """Count what has streamed to the device so far."""
        return self._ring.copied_bytes if self._ring else 0

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the transformer's blocks in order, each there (without modulation) while yielded."""
        order = self._moving_blocks * 2
        at = 0  # never in the second half, which stands for the next step
        for number, block in enumerate(self.transformer.transformer_blocks):
            streamed = number in self.plan.streamed_blocks
            if streamed:
                self._enter(order, at)
                at += 1
            try:
                yield block
            finally:
                if streamed:
                    self._leave()

    def modulations(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yield each block's `img_mod` and `txt_mod` in order, each pair there while yielded."""
        for number, block in enumerate(self.transformer.transformer_blocks):
            if self._ring:
                self._enter(self.parts.modulation, number)
            try:
                yield block.img_mod, block.txt_mod
            finally:
                self._leave()

    @contextmanager
    def borrow(self, name: str) -> Iterator[Any]:
        """Have `text_encoder`, `vae` or `transformer` (all but its blocks) ready for use."""
        try:
            yield getattr(self, name)
        finally:
            self._leave()

    def cast(self, dtype: torch.dtype) -> None:
        """Make the transformer's weights `dtype` where they live. Nothing is loaded again.

        The modulation stays as it is: it is converted each time a table is made of it.
        """
        if self._ring:
            self._ring.forget()
        for unit in self.parts:
            if unit.name.partition(".")[0] == "transformer" and unit not in self.parts.modulation:
                unit.cast(dtype)

    def release(self) -> None:
        """Give the memory of an edit back; to be called after each, also a failed one."""
        self._leave()
        if self.device.type == "cuda":  # pragma: no cover - needs a GPU
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Unpin the host's memory; the weights are not used after this."""
        for unit in self._pinned:
            unpin(unit)
        self._pinned, self._ring = [], None

    def _enter(self, order: Sequence[FlatParams], at: int) -> None:
        if self._ring is None:
            raise LookupError("the weights have not settled")
        self._ring.enter(order, at)

    def _leave(self) -> None:
        if self._ring:
            self._ring.leave()

    def _hook_text_encoder(self) -> None:
        """Bring each streamed layer just before it runs."""
        model = self.text_encoder.model
        layers = [*model.visual.blocks, *model.language_model.layers]
        for at, number in enumerate(sorted(self.plan.streamed_layers)):
            layers[number].register_forward_pre_hook(
                lambda *_, at=at: self._enter(self._moving_layers, at)
            )
            layers[number].register_forward_hook(lambda *_: self._leave())
