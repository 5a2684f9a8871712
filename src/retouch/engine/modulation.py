"""Cache of AdaLN modulation (shift, scale, gate) per timestep: a third of the weights that denoising never needs.

`img_mod` and `txt_mod` depend on the timestep only, so their outputs for a schedule are computed once
and kept. They are computed row by row, as the model itself does: the table is equal bit for bit.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from retouch.engine.memory.weights import Weights

MAX_SCHEDULES = 4
"""About 133 MB of host memory for each 30 steps of the full model in half precision."""


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

    def to(self, device: torch.device) -> "ModulationTable":
        """Return the table on `device`; the same tensors if it is there already."""
        return ModulationTable(self.image.to(device), self.text.to(device), self.last.to(device))


class ModulationCache:
    """Computes tables, and keeps those of the last `MAX_SCHEDULES` schedules in host memory."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._tables: OrderedDict[tuple[Any, ...], ModulationTable] = OrderedDict()

    def get(self, timesteps: torch.Tensor) -> ModulationTable:
        """Return the table of `timesteps` (step,), 0 to 1000, on the device of the weights."""
        key = (self._weights.transformer.proj_out.weight.dtype, *timesteps.tolist())
        if key not in self._tables:
            self._tables[key] = self._compute(timesteps).to(torch.device("cpu"))
            if len(self._tables) > MAX_SCHEDULES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key].to(self._weights.device)

    def _compute(self, timesteps: torch.Tensor) -> ModulationTable:
        transformer, device = self._weights.transformer, self._weights.device
        like = transformer.proj_out.weight
        embedded = [
            _embed(time, transformer, like) for time in (timesteps.float() / 1000).to(device)
        ]
        image, text = [], []
        for image_mod, text_mod in self._weights.modulations():
            image_linear, text_linear = (
                linear_on(modulation[-1], device, like.dtype)  # the linear layer after the SiLU
                for modulation in (image_mod, text_mod)
            )
            image.append(torch.stack([_apply(image_linear, rows, 6) for rows in embedded]))
            text.append(torch.stack([_apply(text_linear, rows[:1], 6) for rows in embedded]))
        for table in (*image, *text):  # (step, 6, row, dim): 6 = shift, scale, gate of two norms
            table[:, [1, 4]] += 1
        last = torch.stack([_apply(transformer.norm_out.linear, rows[:1], 2) for rows in embedded])
        last[:, 0] += 1  # (step, 2, 1, dim): here the scale comes first
        return ModulationTable(torch.stack(image, 1), torch.stack(text, 1), last)


def _embed(time: torch.Tensor, transformer: Any, like: torch.Tensor) -> torch.Tensor:
    """Embed one timestep (0 to 1), and time zero after it for models that want it: (row, dim)."""
    times = time.expand(1)
    if transformer.config.zero_cond_t:
        times = torch.cat([times, times * 0])
    embedded: torch.Tensor = transformer.time_text_embed(times, like)
    return embedded


def linear_on(linear: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a copy of `linear` on `device` in `dtype`; its own weights if they are that already."""
    copy = nn.Linear(linear.in_features, linear.out_features, device="meta")
    for name, weights in linear.named_parameters():
        moved = weights.to(device, dtype, non_blocking=True)
        setattr(copy, name, nn.Parameter(moved, requires_grad=False))
    return copy


def _apply(linear: Any, rows: torch.Tensor, parts: int) -> torch.Tensor:
    """Apply SiLU and `linear`: (row, dim) -> (part, row, dim)."""
    out: torch.Tensor = linear(nn.functional.silu(rows))  # (row, part x dim)
    return out.view(len(out), parts, -1).transpose(0, 1)  # (row, part, dim) -> (part, row, dim)
