"""The guidance branches of an edit, as one process computes them. `team` shares them out over several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from retouch.editing.ports import AppliedAdapter
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.block import BlockCall
from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationCache
from retouch.engine.recording import RecordedSteps, record_graphs
from retouch.engine.rotary import Grid
from retouch.engine.transformer import Transformer
from retouch.engine.ulysses import WHOLE, Share

Velocities = Callable[[torch.Tensor, int], list[torch.Tensor]]
"""Takes latents (1, token, 4 channels) and the step's number; returns each branch's velocity, alike."""


@dataclass(frozen=True)
class BranchInputs:
    """What the transformer's work in an edit follows from, the latents apart.

    `texts` are the hidden states (1, text token, width) of the branches, `conditions` the latents of
    each condition image (1, token, 4 channels), `timesteps` (step,) those that run.
    """

    texts: Sequence[torch.Tensor]
    conditions: Sequence[torch.Tensor]
    grids: Sequence[Grid]
    timesteps: torch.Tensor
    loras: Sequence[AppliedAdapter] = ()

    def to(self, device: str) -> "BranchInputs":
        """Return the inputs on a device."""
        return replace(
            self,
            texts=[text.to(device) for text in self.texts],
            conditions=[condition.to(device) for condition in self.conditions],
            timesteps=self.timesteps.to(device),
        )


class LocalBranches:
    """Branches that this process computes, over weights that it has."""

    def __init__(self, weights: Weights, adapters: LoadedAdapters, *, run_block: BlockCall) -> None:
        self._weights = weights
        self._adapters = adapters
        self._transformer = Transformer(weights, run_block)
        self._modulation = ModulationCache(weights)

    @property
    def device(self) -> torch.device:
        """Where velocities are computed."""
        return self._weights.device

    @property
    def is_resident(self) -> bool:
        """Whether no weights stream."""
        return not self._weights.plan.slots

    @property
    def heads(self) -> int:
        """Attention heads of the model."""
        return int(self._weights.transformer.config.num_attention_heads)

    def start(self, inputs: BranchInputs, share: Share = WHOLE) -> Velocities:
        """Embed what is the same in every step. Of the processes that share the tokens the first has all."""
        like = self._weights.transformer.proj_out.weight
        terms = self._adapters.get_terms(inputs.loras, like)
        modulation = self._modulation.get(inputs.timesteps, terms)
        conditioning = self._transformer.prepare_conditioning(
            conditions=inputs.conditions,
            texts=inputs.texts,
            grids=inputs.grids,
            terms=terms,
            share=share,
        )
        forward = partial(self._transformer.forward, conditioning=conditioning)
        # Streamed weights come at other times in each step. Without an exchange the CPU is fast enough,
        # and an exchange is recorded by all or by none.
        if share.is_resident and self.device.type == "cuda":  # pragma: no cover - needs GPUs
            return RecordedSteps(forward, modulation, record_graphs)
        return lambda latents, step: forward(latents, modulation=modulation.of_step(step))

    def has(self, loras: Sequence[AppliedAdapter]) -> bool:
        """Whether the adapters came with the checkpoint: then every process that loaded it has them."""
        return {one.name for one in loras} <= self._adapters.names

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the transformer's weights in the memory they have."""
        self._weights.cast(dtype)

    def release(self) -> None:
        """Return an edit's memory to the system."""
        self._weights.release()
