"""Add adapters to weights while these are read, and measure what rounding loses of an update."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from retouch.engine.adapters.read import LowRank
from retouch.engine.memory.flat_params import PackedWeight
from retouch.engine.packing.encoding import Packer

MAX_LOSS = 0.10
"""Above this an adapter stays unmerged: weights in bfloat16 would round much of a small update away."""
Update = tuple[LowRank, float]
"""The update of a layer, and its adapter's scale."""


def compute_update(update: Update, device: torch.device) -> torch.Tensor:
    """Return what an update adds to its layer's weight: (out, in), float32."""
    layer, scale = update
    down, up = (part.to(device, torch.float32) for part in (layer.down, layer.up))
    return (up @ down).mul_(scale * layer.factor)


@dataclass(frozen=True, slots=True)
class MergedWeight:
    """Where a weight lives that `updates` are added to in float32, before it is rounded or packed."""

    into: torch.Tensor | PackedWeight
    updates: Sequence[Update]

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(self.into.shape)

    @property
    def device(self) -> torch.device:
        """Where it lives."""
        return self.into.device

    def write(self, weight: torch.Tensor, factor: float) -> None:
        """Store `weight` (`shape`; float32), which is overwritten, with the updates, times `factor`."""
        for update in self.updates:
            weight += compute_update(update, weight.device)
        if isinstance(self.into, PackedWeight):
            self.into.write(weight, factor)
        else:
            self.into.copy_(weight.mul_(factor))


@dataclass(slots=True)
class MergeLoss:
    """Squared errors of rounding weights with their update and without it, and the update's square.

    Q rounds a weight W to what it is stored in, D is the update.
    """

    merged: float = 0.0
    plain: float = 0.0
    update: float = 0.0

    @property
    def share(self) -> float:
        """Return sqrt(max(0, |Q(W + D) - (W + D)|^2 - |Q(W) - W|^2)) / |D|.

        >>> MergeLoss(merged=5.0, plain=1.0, update=16.0).share
        0.5
        """
        return float(
            (max(0.0, self.merged - self.plain) / self.update) ** 0.5 if self.update else 0.0
        )

    def add(
        self, weight: torch.Tensor, update: torch.Tensor, packer: Packer, factor: float
    ) -> None:
        """Add a layer, float32, whose weight is stored by `packer` after it is multiplied by `factor`."""
        self.merged += _squared_error(weight + update, packer, factor)
        self.plain += _squared_error(weight, packer, factor)
        self.update += _square(update)


@dataclass(frozen=True, slots=True)
class LossProbe:
    """Takes a weight's place while it is read, to add it to `losses`.

    `storages` are how it may be stored, by the same names: a packer, and the factor before it.
    """

    shape: tuple[int, ...]
    device: torch.device
    update: Update
    storages: Mapping[str, tuple[Packer, float]]
    losses: Mapping[str, MergeLoss]

    def write(self, weight: torch.Tensor, _factor: float) -> None:
        """Add `weight` (`shape`; float32) to the losses."""
        update = compute_update(self.update, weight.device)
        for name, (packer, factor) in self.storages.items():
            self.losses[name].add(weight, update, packer, factor)


def _squared_error(weight: torch.Tensor, packer: Packer, factor: float) -> float:
    stored, found = weight * factor, torch.empty_like(weight)
    packer.expand(packer.pack(stored), found)
    return _square(found.sub_(stored)) / factor**2


def _square(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
