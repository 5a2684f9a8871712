"""Run the autoencoder's layers of the highest resolutions in stripes, so that large images take little memory.

These layers are convolutions and norms over channels, so a stripe with enough rows of its neighbours
gives what the whole image does, up to the rounding of another shape. The middle, which attends to the
whole image, is small and runs at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageResample

from retouch.engine.memory.plan import STRIPE_AREA_PX

Run = Callable[[torch.Tensor], torch.Tensor]
_ROWS_PX = 16
"""A stripe's rows are a multiple of it: every layer then has whole rows of it."""


def decode_in_stripes(decoder: Any, latents: torch.Tensor) -> torch.Tensor:
    """Return what `decoder` makes of latents (b, c, 1, h/8, w/8): (b, 3, 1, h, w)."""
    hidden = decoder.mid_block(decoder.conv_in(latents))
    *small, half, full = decoder.up_blocks
    for block in small:
        hidden = block(hidden)

    def finish(stripe: torch.Tensor) -> Any:
        out = decoder.norm_out(full(half(stripe)))
        return decoder.conv_out(decoder.nonlinearity(out))

    # Two convolutions of 3 x 3 a residual block, one that enlarges and one at the end.
    halo = 2 * len(half.resnets) + len(full.resnets) + 1
    return in_stripes(finish, hidden, halo=halo, row_px=2)


def encode_in_stripes(encoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return what `encoder` makes of pixels (b, 3, 1, h, w): (b, 2 c, 1, h/8, w/8)."""
    layers = list(encoder.down_blocks)
    shrinking = [at for at, layer in enumerate(layers) if isinstance(layer, QwenImageResample)]
    first, second = shrinking[:2]

    def begin(stripe: torch.Tensor) -> Any:
        hidden = encoder.conv_in(stripe)
        for layer in layers[: second + 1]:
            hidden = layer(hidden)
        return hidden

    # As above; those at half of the resolution reach twice as far.
    reach = 1 + 2 * first + 1 + 2 * (2 * (second - first - 1) + 1)
    halo = -(-reach // _ROWS_PX) * _ROWS_PX
    hidden = in_stripes(begin, pixels, halo=halo, row_px=1)
    for layer in layers[second + 1 :]:
        hidden = layer(hidden)
    hidden = encoder.norm_out(encoder.mid_block(hidden))
    encoded: torch.Tensor = encoder.conv_out(encoder.nonlinearity(hidden))
    return encoded


def in_stripes(run: Run, whole: torch.Tensor, *, halo: int, row_px: int) -> torch.Tensor:
    """Run on stripes of (b, c, 1, h, w), and join what comes of each.

    A stripe has up to `STRIPE_AREA_PX` of the image, of which a row is `row_px` pixels high, and
    `halo` more rows on both sides than are kept of it.
    """
    height, width = whole.shape[-2:]
    rows_px = STRIPE_AREA_PX // (width * row_px) - 2 * halo * row_px
    rows = max(rows_px // _ROWS_PX, 1) * _ROWS_PX // row_px
    parts = []
    for start in range(0, height, rows):
        top = max(start - halo, 0)
        stripe = whole[..., top : start + rows + halo, :]
        found = run(stripe)
        first, count = (
            number * found.shape[-2] // stripe.shape[-2] for number in (start - top, rows)
        )
        parts.append(found[..., first : first + count, :].clone())  # not all of `found`
    return torch.cat(parts, dim=-2)
