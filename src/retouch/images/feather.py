"""Feather the edge of a mask, and put the source's own pixels back outside it."""

from typing import Any

import numpy as np
from PIL import Image

Floats = np.ndarray[Any, np.dtype[np.float32]]


def feather(mask: Image.Image, radius_px: int) -> Image.Image:
    """Return the mask with a ramp outward: 255 within it, 0 further than `radius_px` from it.

    Distances are along rows and columns (Chebyshev).
    """
    if radius_px == 0:
        return mask
    # Grown by one half and averaged over the other: a whole window around any pixel of the mask is
    # grown mask, and one around a pixel further than both has none of it.
    grow_px, blur_px = radius_px - radius_px // 2, radius_px // 2
    values = (np.asarray(mask) > 0).astype(np.float32)
    for _ in range(2):  # rows, then columns; transposed twice it is as before
        values = (_window_sums(values, grow_px) > 0).astype(np.float32).T
    for _ in range(2):
        values = _window_sums(values, blur_px).T / np.float32(2 * blur_px + 1)
    return Image.fromarray((values * 255 + 0.5).astype(np.uint8))


def _window_sums(values: Floats, reach_px: int) -> Floats:
    """Sum each row over windows of 2 `reach_px` + 1; the ends are continued."""
    padded = np.pad(values, ((0, 0), (reach_px, reach_px)), mode="edge")
    sums = np.cumsum(np.pad(padded, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
    width = 2 * reach_px + 1
    found: Floats = (sums[:, width:] - sums[:, :-width]).astype(np.float32)
    return found


def paste_back(
    edited: Image.Image, source: Image.Image, alpha: Image.Image, box: tuple[int, int, int, int]
) -> Image.Image:
    """Return `source` (RGB) with `edited` in its `box`, as far as `alpha` (L, of the source's size) says.

    `edited` is resampled to the box by Lanczos. Where alpha is 0 the source's own pixels stay.
    """
    size_px = box[2] - box[0], box[3] - box[1]
    if edited.size != size_px:
        edited = edited.resize(size_px, Image.Resampling.LANCZOS)
    whole = source.copy()
    whole.paste(edited, box, alpha.crop(box))
    return whole
