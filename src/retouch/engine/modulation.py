"""What the timestep says to every block, tabulated: a third of the weights that denoising never needs.

`img_mod` and `txt_mod` see nothing but the timestep, so their answers for a schedule are computed once
and kept. Row by row, as the model itself would: the table is equal to it bit for bit.
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
    """Shift, 1 + scale and gate of both norms, for each step and block, and the last norm's two.

    `image` is (step, block, 6, row, dim): one row, or of models that take the condition at time zero
    a second for its tokens. `text` is (step, block, 6, 1, dim) and `last` (step, 2, 1, dim).
    """

    image: torch.Tensor
    text: torch.Tensor
    last: torch.Tensor

    def to(self, device: torch.device) -> "ModulationTable":
        """Copy the table to `device`, where it is not there already."""
        return ModulationTable(self.image.to(device), self.text.to(device), self.last.to(device))


class ModulationCache:
    """Computes tables, and keeps those of the last few schedules in host memory."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._tables: OrderedDict[tuple[Any, ...], ModulationTable] = OrderedDict()

    def look_up(self, timesteps: torch.Tensor, transformer: Any) -> ModulationTable:
        """Return the table of `timesteps` (0 to 1000, one a step), on the device of the weights."""
        key = (transformer.proj_out.weight.dtype, *timesteps.tolist())
        if key not in self._tables:
            self._tables[key] = self._compute(timesteps, transformer).to(torch.device("cpu"))
            if len(self._tables) > MAX_SCHEDULES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key].to(self._weights.device)

    def _compute(self, timesteps: torch.Tensor, transformer: Any) -> ModulationTable:
        device, like = self._weights.device, transformer.proj_out.weight
        moments = [
            _embed(time, transformer, like) for time in (timesteps.float() / 1000).to(device)
        ]
        last = [_apply(transformer.norm_out.linear, moment[:1], 2) for moment in moments]
        image, text = [], []
        for image_mod, text_mod in self._weights.modulations():
            image_linear, text_linear = (
                _bring(modulation, device, like.dtype) for modulation in (image_mod, text_mod)
            )
            image.append(torch.stack([_apply(image_linear, moment, 6) for moment in moments]))
            text.append(torch.stack([_apply(text_linear, moment[:1], 6) for moment in moments]))
        for table in (*image, *text):
            table[:, [1, 4]] += 1
        ends = torch.stack(last)
        ends[:, 0] += 1  # here the scale comes first
        return ModulationTable(torch.stack(image, 1), torch.stack(text, 1), ends)


def _embed(time: torch.Tensor, transformer: Any, like: torch.Tensor) -> torch.Tensor:
    """Embed one moment, and after it time zero where the model wants that for the condition."""
    times = time.expand(1)
    if transformer.config.zero_cond_t:
        times = torch.cat([times, times * 0])
    embedded: torch.Tensor = transformer.time_text_embed(times, like)
    return embedded


def _bring(modulation: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the linear layer after the SiLU with its weights on `device` as `dtype`."""
    linear = modulation[-1]
    there = nn.Linear(linear.in_features, linear.out_features, device="meta")
    for name, weights in linear.named_parameters():
        brought = weights.to(device, dtype, non_blocking=True)
        setattr(there, name, nn.Parameter(brought, requires_grad=False))
    return there


def _apply(linear: Any, moment: torch.Tensor, parts: int) -> torch.Tensor:
    """Apply SiLU and `linear`: (row, dim) -> (part, row, dim)."""
    out: torch.Tensor = linear(nn.functional.silu(moment))
    return out.view(len(out), parts, -1).transpose(0, 1)
