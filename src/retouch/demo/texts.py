"""Instructions as the text encoder gets them: tokens, positions, and its states."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy import typing as npt
from torch import Tensor

from retouch.demo import build

TEXT_TOKENS = 56
"""The longest text in tokens after the template's prefix; longer instructions are drawn again."""
PREFIX_TOKENS = 64
"""Tokens of the template before the picture, which the pipeline drops (its own constant)."""
_GRIDS = ((2, 2),) * 4 + ((1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2), (1, 4), (4, 1))
"""(rows, columns) in image tokens of the text encoder: what rounding makes of many aspects."""
_LARGEST_GRID = (2, 3)
_TRUE_POSITIONS_SHARE = 0.5


@dataclass(slots=True)
class Texts:
    """Instructions as tokens: ids (b, t), positions (b, 3, t), lengths (b,) without the prefix."""

    ids: Tensor
    positions: Tensor
    lengths: Tensor


def _positions(
    row: list[int], image_token: int, grid: tuple[int, int], length: int
) -> npt.NDArray[np.int64]:
    """Give the 3-D M-RoPE positions (3, t): text counts on, image tokens count rows and columns."""
    rows, columns = grid
    positions = np.tile(np.arange(length), (3, 1))
    first = row.index(image_token)
    after = first + rows * columns
    positions[0, first:after] = first
    positions[1, first:after] = first + np.repeat(np.arange(rows), columns)
    positions[2, first:after] = first + np.tile(np.arange(columns), rows)
    positions[:, after:] = np.arange(length - after) + first + max(rows, columns)
    return positions


class Tokens:
    """Turns instructions into token rows, as the stock processor does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = build.edit_template()
        self._image = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def row(self, text: str, grid: tuple[int, int]) -> list[int]:
        """Give the ids of one instruction in its template."""
        pads = "<|image_pad|>" * (grid[0] * grid[1])
        filled = self._template.format(text).replace("<|image_pad|>", pads)
        ids: list[int] = self._tokenizer(filled)["input_ids"]
        return ids

    def fits(self, text: str) -> bool:
        """Say whether an instruction is short enough to train on."""
        return len(self.row(text, _LARGEST_GRID)) <= PREFIX_TOKENS + TEXT_TOKENS

    def rows(self, texts: list[str], device: str, *, grid: tuple[int, int] | None = None) -> Texts:
        """Give the rows of many; unless told, the picture has a random aspect.

        Half of the random rows get flat positions, which diffusers 0.42.1 with transformers >= 5.3
        ends up with (huggingface/diffusers#14194): the checkpoint is to work under both.
        """
        length = PREFIX_TOKENS + TEXT_TOKENS
        ids = np.full((len(texts), length), self._tokenizer.pad_token_id)
        positions = np.tile(np.arange(length), (len(texts), 3, 1))
        lengths = np.zeros(len(texts), int)
        dice = np.random.default_rng(int(torch.randint(2**31, ()).item()))
        for at, text in enumerate(texts):
            shape = grid or _GRIDS[dice.integers(len(_GRIDS))]
            row = self.row(text, shape)
            ids[at, : len(row)] = row
            lengths[at] = len(row) - PREFIX_TOKENS
            if grid or dice.random() < _TRUE_POSITIONS_SHARE:
                positions[at] = _positions(row, self._image, shape, length)
        arrays = (torch.from_numpy(array).to(device) for array in (ids, positions, lengths))
        return Texts(*arrays)


def embed(text_encoder: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Give the text encoder's last states without the prefix.

    Takes ids (b, t) and positions (b, 3, t), gives (b, t - PREFIX_TOKENS, width). Image tokens count
    as zeros, which is what the vision tower gives while its last layer is zero. Padding stands at the end, where causal attention hides it from what comes before.
    """
    language = text_encoder.model.language_model
    image = (ids == text_encoder.config.image_token_id).unsqueeze(-1)
    states: Tensor = language(
        inputs_embeds=language.embed_tokens(ids).masked_fill(image, 0),
        position_ids=positions.transpose(0, 1),  # (b, 3, t) -> (3, b, t)
        attention_mask={"full_attention": None},
        use_cache=False,
    ).last_hidden_state
    return states[:, PREFIX_TOKENS:]
