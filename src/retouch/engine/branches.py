"""The guidance branches of an edit: all in this process, or shared out over processes with a GPU each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from retouch.editing.ports import AppliedAdapter
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.block import BlockCall
from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationCache
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


class Team(Protocol):
    """The other processes with this model, as `SplitBranches` uses them."""

    guidance: bool
    """Whether guidance branches go to different processes."""

    @property
    def processes(self) -> int:
        """How many there are, with this one."""

    def choose_size(self, processes: int, heads: int) -> int:
        """Return how many of `processes` share the tokens of a branch."""

    def share(self, size: int) -> Share:
        """Return this process's share of the tokens, of so many."""

    def start(self, inputs: Sequence[BranchInputs], size: int) -> None:
        """Begin an edit in as many of them as there are `inputs`."""

    def begin_step(self, latents: torch.Tensor, step: int) -> None:
        """Have a step computed by those of the edit."""

    def collect(self) -> list[list[torch.Tensor]]:
        """Wait for those of the edit: the velocities of each, on the host; none as it begins."""

    def end(self) -> None:
        """End them."""

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights there."""


class SplitBranches:
    """Branches shared out over this process and a team.

    A branch a process makes the same bytes as one process, as each is computed alike; shares of a
    branch's tokens differ by rounding. Where a request brought an adapter, which is only here, the
    others rest.
    """

    def __init__(self, here: LocalBranches, team: Team) -> None:
        self._here = here
        self._team = team

    def start(self, inputs: BranchInputs) -> Velocities:
        """Begin on all sides.

        Raises:
            ModelLost: another process has ended.
        """
        branches = len(inputs.texts)
        parts = branches if self._team.guidance else 1
        size = self._team.choose_size(self._team.processes // parts, self._here.heads)
        if parts * size == 1 or not self._here.has(inputs.loras):
            return self._here.start(inputs)
        # As (part, share): processes that share a branch follow each other.
        each = [
            replace(inputs, texts=inputs.texts[part * branches // parts :][: branches // parts])
            for part in range(parts)
            for _ in range(size)
        ]
        self._team.start(each[1:], size)
        try:
            here = self._here.start(each[0], self._team.share(size))
        finally:  # or the first step would read what comes of the start
            self._team.collect()

        def compute(latents: torch.Tensor, step: int) -> list[torch.Tensor]:
            self._team.begin_step(latents, step)
            found = [self._compute(here, latents, step, size), *self._team.collect()]
            return [
                torch.cat([share[branch].to(self._here.device) for share in shares], dim=1)
                for shares in (found[at : at + size] for at in range(0, len(found), size))
                for branch in range(len(shares[0]))
            ]

        return compute

    def cast(self, dtype: torch.dtype) -> None:
        """Convert the weights on all sides."""
        self._team.cast(dtype)
        self._here.cast(dtype)

    def _compute(
        self, here: Velocities, latents: torch.Tensor, step: int, size: int
    ) -> list[torch.Tensor]:
        try:
            return here(latents, step)
        except Exception as error:
            if size > 1:  # the others wait for this one in an exchange, or it failed with them
                self._team.end()
            if size == 1 or not isinstance(error, torch.OutOfMemoryError):
                self._team.collect()  # which raises what is known of the others
            raise
