"""The host's part of an edit: resize, preprocess and tokenize."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL.Image import Image

from retouch.editing.ports import EditParams
from retouch.engine.preset import PresetFile
from retouch.engine.rotary import Grid
from retouch.engine.text_encoder import TextEncoder, TextInputs
from retouch.engine.vae import SingleFrameVae, pack
from retouch.images.mask import resize_mask

_SYMBOLS = re.compile(r"[^\w\s.,;:!?'&%-]|_")
MIN_SIDE_PX = 32
"""Conditioning sizes are multiples of it; the side of a very narrow image would round to zero."""
CONDITION_AREA_PX = 1024 * 1024
"""Area at which the stock pipelines encode a condition image."""


@dataclass(frozen=True, slots=True)
class EditInputs:
    """`PreparedEdit.inputs`: everything the model needs, on the host.

    `pixels` has each condition image (1, 3, h, w; -1 to 1). `grids` has rows and columns of tokens:
    of the result, then of each condition image. `source` (1, 3, h, w) has the first image at the
    result's size where the edit starts from it or keeps to it, `mask` (1, token, 4 c) is 1 where the
    model may paint.
    """

    text: TextInputs
    pixels: tuple[torch.Tensor, ...]
    grids: tuple[Grid, ...]
    source: torch.Tensor | None = None
    mask: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Conditioning:
    """Embedded prompts and images of an edit, on the GPU. They do not depend on the seed.

    `texts` (1, text token, width) has the prompt's hidden states, then the negative prompt's.
    `images` (1, rows x columns, 4 c) has the latents of each condition image, `source` those of the
    first image at the result's size, where they are needed.
    """

    texts: list[torch.Tensor]
    images: list[torch.Tensor]
    source: torch.Tensor | None


def prepare_inputs(
    images: Sequence[Image],
    params: EditParams,
    mask: Image | None,
    *,
    text_encoder: TextEncoder,
    vae: SingleFrameVae,
    preset: PresetFile,
) -> EditInputs:
    """Return the inputs of an edit. A guidance scale over 1 adds the negative prompt's branch.

    The text encoder and the autoencoder see each image in sizes of their own.
    """
    token_px = vae.token_px
    resizer = VaeImageProcessor(vae_scale_factor=token_px)
    prompts = [params.prompt, *([params.negative_prompt] if params.guidance_scale > 1 else [])]
    prompts = [simplify(prompt) if preset.plain_prompts else prompt for prompt in prompts]
    area_px = min(CONDITION_AREA_PX, preset.condition_area_px)
    vision_area_px = min(text_encoder.template.vision_area_px, area_px)
    seen, pixels, sizes = [], [], [(params.width_px, params.height_px)]
    for image in images:
        ratio = image.width / image.height
        width_px, height_px = fit(vision_area_px, ratio)
        seen.append(resizer.resize(image, height_px, width_px))
        width_px, height_px = fit(area_px, ratio)
        if preset.condition_as_result:
            width_px, height_px = params.width_px, params.height_px
        sizes.append((width_px, height_px))
        pixels.append(resizer.preprocess(image, height_px, width_px))
    grids = tuple((height_px // token_px, width_px // token_px) for width_px, height_px in sizes)
    source = None
    if mask is not None or params.skipped_steps:
        source = resizer.preprocess(images[0], params.height_px, params.width_px)
    return EditInputs(
        text_encoder.prepare(seen, prompts),
        tuple(pixels),
        grids,
        source,
        mask=None if mask is None else mask_tokens(mask, grids[0], vae.channels),
    )


def simplify(text: str) -> str:
    """Return a prompt in small letters, without symbols and repeated blanks.

    >>> simplify("  Make it\u00a0 WARMER! \U0001f525"), simplify("B&W"), simplify("\U0001f525")
    ('make it warmer!', 'b&w', '')
    """
    return " ".join(_SYMBOLS.sub(" ", text.lower()).split())


def mask_tokens(mask: Image, grid: Grid, channels: int) -> torch.Tensor:
    """Return a mask (L) as tokens (1, rows x columns, 4 c) of a `grid`: 1 where the model may paint.

    A latent is painted where any of its pixels is.
    """
    rows, columns = grid
    values = np.asarray(resize_mask(mask, (2 * columns, 2 * rows)), dtype=np.float32) / 255
    latents = torch.from_numpy(values)[None, None]  # (h, w) -> (1, 1, h, w)
    return pack(latents.expand(1, channels, -1, -1))


def fit(area_px: int, ratio: float) -> tuple[int, int]:
    """Return width and height of about `area_px` in this `ratio`, rounded as in the stock pipelines.

    >>> fit(1024 * 1024, 3 / 2), fit(128 * 128, 200.0)
    ((1248, 832), (1824, 32))
    """
    width_px = (area_px * ratio) ** 0.5
    height_px = width_px / ratio
    return max(round(width_px / 32) * 32, MIN_SIDE_PX), max(round(height_px / 32) * 32, MIN_SIDE_PX)
