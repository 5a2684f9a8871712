"""Where a pipeline's weights live: `Weights` brings them to the device and takes them away again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import nn

from retouch.engine.plan import RESIDENT, Plan


class Weights:
    """Owns the modules of a pipeline, and has each part's weights on `device` while it is in use.

    A module is used only while it is yielded or borrowed. `transformer`, `vae` and `text_encoder`
    may be read for their configuration at any time.
    """

    def __init__(
        self, *, transformer: Any, vae: Any, text_encoder: Any, plan: Plan, device: torch.device
    ) -> None:
        self.transformer, self.vae, self.text_encoder = transformer, vae, text_encoder
        self.plan = plan
        self.device = device

    @classmethod
    def resident(cls, *, transformer: Any, vae: Any, text_encoder: Any) -> Self:
        """Take modules that stay where they are."""
        return cls(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            plan=RESIDENT,
            device=next(transformer.parameters()).device,
        )

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the transformer's blocks in order, each there (without modulation) while yielded."""
        yield from self.transformer.transformer_blocks

    def modulations(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """Yield each block's `img_mod` and `txt_mod` in order, each pair there while yielded."""
        for block in self.transformer.transformer_blocks:
            yield block.img_mod, block.txt_mod

    @contextmanager
    def borrow(self, name: str) -> Iterator[Any]:
        """Have `text_encoder`, `vae` or `transformer` (all but its blocks) ready for use."""
        yield getattr(self, name)

    def release(self) -> None:
        """Give the memory of an edit back; to be called after each, also a failed one."""
        if self.device.type == "cuda":  # pragma: no cover - needs a GPU
            torch.cuda.empty_cache()
