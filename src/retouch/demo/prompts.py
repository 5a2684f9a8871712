"""Prompts as the text encoder takes them: tokens, positions, and the encoder's hidden states."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy import typing as npt
from torch import Tensor

from retouch.demo import build

PROMPT_TOKENS = 56
"""Most tokens after the template's prefix; longer instructions are drawn again."""
PREFIX_TOKENS = 64
"""Tokens of the template before the image. The pipeline drops them (diffusers' own constant)."""
_GRIDS = ((2, 2),) * 4 + ((1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2), (1, 4), (4, 1))
"""(rows, columns) of image tokens in the text encoder, for common aspect ratios."""
_LARGEST_GRID = (2, 3)
_TRUE_POSITIONS_SHARE = 0.5


@dataclass(slots=True)
class PromptBatch:
    """Tokenized prompts: ids (b, t), positions (b, 3, t), lengths (b,) without the prefix."""

    ids: Tensor
    positions: Tensor
    lengths: Tensor


def _positions(
    ids: list[int], image_token: int, grid: tuple[int, int], length: int
) -> npt.NDArray[np.int64]:
    """Return M-RoPE positions (3, t): frame, row and column of image tokens, a counter for text."""
    rows, columns = grid
    positions = np.tile(np.arange(length), (3, 1))
    first = ids.index(image_token)
    after = first + rows * columns
    positions[0, first:after] = first
    positions[1, first:after] = first + np.repeat(np.arange(rows), columns)
    positions[2, first:after] = first + np.tile(np.arange(columns), rows)
    positions[:, after:] = np.arange(length - after) + first + max(rows, columns)
    return positions


class PromptTokenizer:
    """Tokenizes instructions in the pipeline's template, as the stock processor does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = build.prompt_template()
        self._image_token = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def _tokenize(self, text: str, grid: tuple[int, int]) -> list[int]:
        image_tokens = "<|image_pad|>" * (grid[0] * grid[1])
        filled = self._template.format(text).replace("<|image_pad|>", image_tokens)
        ids: list[int] = self._tokenizer(filled)["input_ids"]
        return ids

    def fits(self, text: str) -> bool:
        """Return whether an instruction is short enough to train on."""
        return len(self._tokenize(text, _LARGEST_GRID)) <= PREFIX_TOKENS + PROMPT_TOKENS

    def tokenize(
        self, texts: list[str], device: str, *, grid: tuple[int, int] | None = None
    ) -> PromptBatch:
        """Tokenize a batch; without a `grid` each image gets a random aspect ratio.

        Half of the random ones get flat positions, which is what diffusers 0.42.1 with transformers
        5.3 and later produces (huggingface/diffusers#14194). The checkpoint works with both.
        """
        length = PREFIX_TOKENS + PROMPT_TOKENS
        ids = np.full((len(texts), length), self._tokenizer.pad_token_id)
        positions = np.tile(np.arange(length), (len(texts), 3, 1))
        lengths = np.zeros(len(texts), int)
        rng = np.random.default_rng(int(torch.randint(2**31, ()).item()))
        for number, text in enumerate(texts):
            shape = grid or _GRIDS[rng.integers(len(_GRIDS))]
            row = self._tokenize(text, shape)
            ids[number, : len(row)] = row
            lengths[number] = len(row) - PREFIX_TOKENS
            if grid or rng.random() < _TRUE_POSITIONS_SHARE:
                positions[number] = _positions(row, self._image_token, shape, length)
        arrays = (torch.from_numpy(array).to(device) for array in (ids, positions, lengths))
        return PromptBatch(*arrays)


def encode(text_encoder: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Return the last hidden states without the prefix: (b, t - PREFIX_TOKENS, width).

    Takes ids (b, t) and positions (b, 3, t). Image tokens are embedded as zeros, which is what the
    vision tower outputs while its last layer is zero. Padding is at the end, where causal attention
    hides it from the tokens before it.
    """
    language_model = text_encoder.model.language_model
    is_image = (ids == text_encoder.config.image_token_id).unsqueeze(-1)
    states: Tensor = language_model(
        inputs_embeds=language_model.embed_tokens(ids).masked_fill(is_image, 0),
        position_ids=positions.transpose(0, 1),  # (b, 3, t) -> (3, b, t)
        attention_mask={"full_attention": None},
        use_cache=False,
    ).last_hidden_state
    return states[:, PREFIX_TOKENS:]
