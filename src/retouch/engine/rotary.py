"""Rotary embedding of the positions of text and image tokens. Shapes as in `transformer`."""

from collections.abc import Sequence
from typing import Any

import torch

Grid = tuple[int, int]
"""Rows and columns of an image's tokens."""


def rotary_embedding(pos_embed: Any, grids: Sequence[Grid], text_tokens: int) -> torch.Tensor:
    """Return cosine and sine for text and images: (t + i, 1, c/2, 2), where the model's table is.

    As `QwenEmbedRope` of diffusers (transformer_qwenimage.py): rows and columns are counted from the
    middle of each image. Not called, because its cache imports the compiler at the first call.
    """
    channels = [count // 2 for count in pos_embed.axes_dim]  # complex, of image, row and column
    positive, negative = (
        table.split(channels, dim=1) for table in (pos_embed.pos_freqs, pos_embed.neg_freqs)
    )

    def centred(axis: int, count: int) -> torch.Tensor:
        before = count - count // 2
        return torch.cat([negative[axis][-before:], positive[axis][: count // 2]])

    images = [
        torch.cat(
            [
                positive[0][number].expand(rows * columns, -1),
                centred(1, rows).repeat_interleave(columns, 0),
                centred(2, columns).repeat(rows, 1),
            ],
            dim=1,
        )
        for number, (rows, columns) in enumerate(grids)
    ]
    first = max(max(grid) // 2 for grid in grids)
    text = pos_embed.pos_freqs[first : first + text_tokens]
    return torch.view_as_real(torch.cat([text, *images]))[:, None]  # (t + i, c/2) complex


def apply_rotary(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of channels of (1, token, h, c) by its token's angle, in float32."""
    pairs = heads.view(*heads.shape[:-1], -1, 2)  # (1, token, h, c) -> (1, token, h, c/2, 2)
    if torch.compiler.is_compiling():  # the compiler cannot fuse complex numbers
        cosine, sine = angles[..., :1], angles[..., 1:]
        turned = pairs * cosine + pairs.flip(-1) * torch.cat([-sine, sine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(angles))
    return turned.flatten(-2)  # (1, token, h, c/2, 2) -> (1, token, h, c)
