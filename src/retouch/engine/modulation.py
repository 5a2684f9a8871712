"""Cache of AdaLN modulation (shift, scale, gate) per timestep: a third of the weights that denoising never needs.

`img_mod` and `txt_mod` depend on the timestep only, so their outputs for a schedule are computed once,
for all its steps in one product a block, and kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from torch import nn

from retouch.engine.adapters.terms import NO_TERMS, Terms
from retouch.engine.linear import Term, linear
from retouch.engine.memory.flat_params import MODULATION
from retouch.engine.memory.weights import Weights

MAX_TABLE_BYTES = 1 << 30
"""Host memory for tables: of the full model in half precision, 8 of 30 steps or 60 of 4 steps."""


class StepModulation(NamedTuple):
    """What a `ModulationTable` has of one step: (block, 6, row, dim), (block, 6, 1, dim) and (2, 1, dim)."""

    image: torch.Tensor
    text: torch.Tensor
    last: torch.Tensor


@dataclass(frozen=True)
class ModulationTable:
    """Shift, 1 + scale and gate of both norms for each step and block, and scale and shift of the last norm.

    `image` is (step, block, 6, row, dim): one row, or two for models that modulate condition tokens
    as at time zero, which the second row is for. `text` is (step, block, 6, 1, dim) and `last` is
    (step, 2, 1, dim).
    """

    image: torch.Tensor
    text: torch.Tensor
    last: torch.Tensor

    @property
    def size_bytes(self) -> int:
        """Bytes of the table."""
        return self.image.nbytes + self.text.nbytes + self.last.nbytes

    def of_step(self, step: int) -> StepModulation:
        """Return views of what one step needs."""
        return StepModulation(self.image[step], self.text[step], self.last[step])

    def to(self, device: torch.device) -> "ModulationTable":
        """Return the table on `device`; the same tensors if it is there already."""
        return ModulationTable(self.image.to(device), self.text.to(device), self.last.to(device))


class ModulationCache:
    """Computes tables, and keeps the latest `MAX_TABLE_BYTES` of them in host memory."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._tables: LRUCache[tuple[Any, ...], ModulationTable] = LRUCache(
            MAX_TABLE_BYTES, getsizeof=lambda table: table.size_bytes
        )

    def get(self, timesteps: torch.Tensor, terms: Terms = NO_TERMS) -> ModulationTable:
        """Return the table of `timesteps` (step,), 0 to 1000, on the device of the weights.

        `terms` are of the edit's adapters.
        """
        key = (self._weights.transformer.proj_out.weight.dtype, terms.key, *timesteps.tolist())
        table = self._tables.get(key)
        if table is None:
            table = self._compute(timesteps, terms.others)
            if table.size_bytes <= self._tables.maxsize:
                self._tables[key] = table.to(torch.device("cpu"))
        return table.to(self._weights.device)

    def _compute(self, timesteps: torch.Tensor, terms: Mapping[str, Term]) -> ModulationTable:
        transformer, device = self._weights.transformer, self._weights.device
        like = transformer.proj_out.weight
        times = torch.cat([timesteps.float() / 1000, torch.zeros(1)]).to(device)
        # (step + 1, dim): every step's, and time zero's for condition tokens
        embedded = nn.functional.silu(_embed_times(transformer.time_text_embed, times, like, terms))
        image, text = [], []
        for number, (image_mod, text_mod) in enumerate(self._weights.modulations()):
            image_linear, text_linear = (
                linear_on(modulation[-1], device, like.dtype)  # the linear layer after the SiLU
                for modulation in (image_mod, text_mod)
            )
            path = f"transformer_blocks.{number}"
            image_term, text_term = (terms.get(f"{path}.{head}.1") for head in MODULATION)
            parts = _apply(image_linear, embedded, 6, image_term)  # (step + 1, 6, 1, dim)
            rows = [parts[:-1]]
            if transformer.config.zero_cond_t:
                rows.append(parts[-1:].expand_as(rows[0]))
            image.append(torch.cat(rows, dim=2))  # (step, 6, row, dim)
            text.append(_apply(text_linear, embedded[:-1], 6, text_term))
        for table in (*image, *text):  # (step, 6, row, dim): 6 = shift, scale, gate of two norms
            table[:, [1, 4]] += 1
        last = _apply(transformer.norm_out.linear, embedded[:-1], 2, terms.get("norm_out.linear"))
        last[:, 0] += 1  # (step, 2, 1, dim): here the scale comes first
        return ModulationTable(torch.stack(image, 1), torch.stack(text, 1), last)


def linear_on(linear: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a copy of `linear` on `device` in `dtype`; its own weights if they are that already."""
    copy = nn.Linear(linear.in_features, linear.out_features, device="meta")
    for name, weights in linear.named_parameters():
        moved = weights.to(device, dtype, non_blocking=True)
        setattr(copy, name, nn.Parameter(moved, requires_grad=False))
    return copy


def _embed_times(
    embed: Any, times: torch.Tensor, like: torch.Tensor, terms: Mapping[str, Term]
) -> torch.Tensor:
    """Embed times (step,) as upstream's `QwenTimestepProjEmbeddings` does: (step, dim)."""
    first, second = (
        terms.get(f"time_text_embed.timestep_embedder.linear_{number}") for number in (1, 2)
    )
    layers = embed.timestep_embedder
    waves = embed.time_proj(times).to(like.dtype)[None]
    return linear(layers.linear_2, layers.act(linear(layers.linear_1, waves, first)), second)[0]


def _apply(layer: Any, rows: torch.Tensor, parts: int, term: Term | None) -> torch.Tensor:
    """Apply a linear layer and split its output: (step, dim) -> (step, part, 1, dim)."""
    out = linear(layer, rows[None], term)[0]  # (step, part x dim)
    return out.view(len(out), parts, 1, -1)
