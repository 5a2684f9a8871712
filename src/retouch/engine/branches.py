"""The guidance branches of an edit: all in this process, or the second one on another GPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from retouch.editing.ports import AppliedAdapter
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationCache
from retouch.engine.transformer import BlockCall, Grid, Transformer

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


class Branches(Protocol):
    """Computes the velocities of guidance branches."""

    def start(self, inputs: BranchInputs) -> Velocities:
        """Begin an edit."""

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the transformer's weights to `dtype` for good."""


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

    def start(self, inputs: BranchInputs) -> Velocities:
        """Embed what is the same in every step."""
        like = self._weights.transformer.proj_out.weight
        terms = self._adapters.get_terms(inputs.loras, like)
        modulation = self._modulation.get(inputs.timesteps, terms)
        conditioning = self._transformer.prepare_conditioning(
            conditions=inputs.conditions, texts=inputs.texts, grids=inputs.grids, terms=terms
        )
        return lambda latents, step: self._transformer.forward(
            latents, conditioning, modulation, step
        )

    def has(self, loras: Sequence[AppliedAdapter]) -> bool:
        """Whether the adapters came with the checkpoint: then every process that loaded it has them."""
        return {one.name for one in loras} <= self._adapters.names

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the transformer's weights in the memory they have."""
        self._weights.cast(dtype)

    def release(self) -> None:
        """Return an edit's memory to the system."""
        self._weights.release()


class SecondProcess(Protocol):
    """The process that computes the second branch, as `SplitBranches` uses it."""

    def start(self, inputs: BranchInputs) -> None:
        """Begin an edit there."""

    def begin_step(self, latents: torch.Tensor, step: int) -> None:
        """Have a step computed."""

    def finish_step(self) -> torch.Tensor:
        """Wait for the step's velocity, on the host."""

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights there."""


class SplitBranches:
    """The first branch here, the second in another process: the same bytes, as each is computed alike.

    An edit without guidance has one branch, and the other process rests. So it does where a request
    brought an adapter, which is only here.
    """

    def __init__(self, here: LocalBranches, there: SecondProcess) -> None:
        self._here = here
        self._there = there

    def start(self, inputs: BranchInputs) -> Velocities:
        """Begin on both sides.

        Raises:
            ModelLost: the other process has ended.
        """
        if len(inputs.texts) == 1 or not self._here.has(inputs.loras):
            return self._here.start(inputs)
        self._there.start(replace(inputs, texts=inputs.texts[1:]))
        first = self._here.start(replace(inputs, texts=inputs.texts[:1]))

        def compute(latents: torch.Tensor, step: int) -> list[torch.Tensor]:
            self._there.begin_step(latents, step)
            try:
                velocities: list[Any] = first(latents, step)
            finally:  # or the next step would read this one's answer
                second = self._there.finish_step()
            return [*velocities, second.to(self._here.device)]

        return compute

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights on both sides."""
        self._there.cast(dtype)
        self._here.cast(dtype)
