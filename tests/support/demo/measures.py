"""Measures of what an edit changed in a photo, and the bars they must meet. Photos are (h, w, 3) in 0..1."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import typing as npt
from PIL import Image

from retouch.demo import edits

Pixels = npt.NDArray[np.float32]
HELD_OUT = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}


def to_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """(h, w, 3) -> (1, 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]


def from_tensor(image: torch.Tensor) -> Pixels:
    """(1, 3, h, w) -> (h, w, 3)."""
    pixels: Pixels = image[0].permute(1, 2, 0).numpy()
    return pixels


def crop_to(image: Image.Image, width_px: int, height_px: int) -> Image.Image:
    """Scale to cover the size, then crop the centre."""
    scale = max(width_px / image.width, height_px / image.height)
    size = (max(width_px, round(image.width * scale)), max(height_px, round(image.height * scale)))
    image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top = (image.width - width_px) // 2, (image.height - height_px) // 2
    return image.crop((left, top, left + width_px, top + height_px))


def held_out_photos(root: Path, edge_px: int = 512) -> dict[str, Image.Image]:
    """The photographs that training never uses, from the packages unpacked under `root`."""
    return {
        name: crop_to(Image.open(root / package / path), edge_px, edge_px)
        for name, (package, path) in HELD_OUT.items()
    }


def psnr_db(one: Pixels, other: Pixels) -> float:
    error = float(np.square(one - other).mean())
    return float(-10 * np.log10(max(error, 1e-10)))


def _luma(pixels: Pixels) -> Pixels:
    return from_tensor(edits.luma(to_tensor(pixels)))[..., 0]


def _smooth(plane: Pixels, sigma_px: float) -> Pixels:
    tensor = torch.from_numpy(np.ascontiguousarray(plane))[None, None]
    smoothed: Pixels = edits.gaussian(tensor, sigma_px)[0, 0].numpy()
    return smoothed


def fine(pixels: Pixels, sigma_px: float = 4.0) -> Pixels:
    """The luma's detail finer than `sigma_px`: (h, w)."""
    plane = _luma(pixels)
    return plane - _smooth(plane, sigma_px)


def _centre_over_corners(pixels: Pixels) -> float:
    plane = _luma(pixels)
    height, width = plane.shape
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    distance = (down**2 + across**2) / 2
    return float(plane[distance < 0.2].mean() - plane[distance > 0.6].mean())


def _excess(*channels: int) -> Callable[[Pixels], float]:
    """The mean of the given channels less the mean of the others."""
    others = [c for c in range(3) if c not in channels]
    return lambda p: float(p[..., list(channels)].mean() - p[..., others].mean())


MEASURES: dict[str, Callable[[Pixels], float]] = {
    "red_minus_blue": lambda p: float((p[..., 0] - p[..., 2]).mean()),
    "brightness": lambda p: float(_luma(p).mean()),
    "contrast": lambda p: float(_luma(p).std()),
    "saturation": lambda p: float((p.max(-1) - p.min(-1)).mean()),
    "detail": lambda p: float(fine(p, 2.0).std()),
    "centre_over_corners": _centre_over_corners,
    "red": _excess(0),
    "green": _excess(1),
    "blue": _excess(2),
    "purple": _excess(0, 2),
}


DIRECTIONS = {
    "warmer": ("red_minus_blue", 1),
    "cooler": ("red_minus_blue", -1),
    "brighter": ("brightness", 1),
    "darker": ("brightness", -1),
    "more_contrast": ("contrast", 1),
    "less_contrast": ("contrast", -1),
    "black_and_white": ("saturation", -1),
    "more_saturation": ("saturation", 1),
    "less_saturation": ("saturation", -1),
    "blur": ("detail", -1),
    "sharpen": ("detail", 1),
    "vignette": ("centre_over_corners", 1),
    "red": ("red", 1),
    "green": ("green", 1),
    "blue": ("blue", 1),
    "purple": ("purple", 1),
}
"""The measure that an edit moves, and its direction."""


def changed_by(edit: str, before: Pixels, after: Pixels) -> float:
    """The change of the edit's measure in the right direction; negative in the wrong one."""
    name, sign = DIRECTIONS[edit]
    return sign * (MEASURES[name](after) - MEASURES[name](before))


def correlation(one: Pixels, other: Pixels) -> float:
    """Pearson's correlation of the luma of two pictures."""
    return correlate(_luma(one), _luma(other))


def correlate(one: Pixels, other: Pixels) -> float:
    """Pearson's correlation of two planes."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def added_texture(smooth: Pixels, grainy: Pixels) -> Pixels:
    """The fine texture of `grainy` that `smooth` lacks: (h, w)."""
    texture: Pixels = fine(grainy) - fine(smooth)
    return texture


def energy(texture: Pixels) -> float:
    return float(np.square(texture).mean())


GRAIN_SHARES = (0.5, 1.5)
"""The least and the most grain energy, as shares of the exact grain's."""

SLIGHT_SHARES = (0.5, 1.5)
"""The least and the most change by a slight edit, as shares of the exact slight edit's."""


def find_faults(
    wording: Mapping[str, Any], changes: Mapping[str, float], closer_db: float
) -> list[str]:
    """List the bars of a sentence in `bench/wordings.json` that the edit missed.

    `closer_db` counts only where one exact result exists that differs from the photo: grain is random,
    and "unchanged" is the photo itself.
    """
    faults = []
    for name, least in wording["changes"].items():
        change = changes[name]
        enough = change >= least if least > 0 else change <= least
        if not enough or (name == "grain" and change > GRAIN_SHARES[1]):
            faults.append(f"{name} {change:+.3f}, required {least:+}")
    comparable = not {"grain", "psnr"} & set(wording["changes"])
    if comparable and closer_db < wording["closer_db"]:
        faults.append(f"closer by {closer_db:.1f} dB, required {wording['closer_db']}")
    return faults


APART = ("grain", "blur")
"""Edits left out of the mean: grain is random, blur is easy."""
MEAN_DB, GAP_DB, GAIN_DB, NEAR_DB, UNCHANGED_DB = 28.0, 1.5, 3.0, 6.0, 29.0

Rows = Mapping[str, npt.NDArray[np.float64]]
"""For each edit one row per photo: PSNR in dB of result, untouched photo and limit to the exact edit."""


def judge_edits(rows: Rows, moved: Mapping[str, float]) -> list[tuple[bool, str]]:
    """List each bar: whether it is met, and the figure.

    Where the untouched photo is within `NEAR_DB` of the limit there is no room for a gain; there
    `moved`, the median change of the edit's measure, must have the right sign.
    """
    result, _, limit = np.mean([np.mean(rows[e], 0) for e in rows if e not in APART], 0)
    verdicts = [
        (
            bool(limit - result <= GAP_DB),
            f"{limit - result:.2f} dB below the limit, at most {GAP_DB}",
        ),
        (bool(result >= MEAN_DB), f"{result:.2f} dB on the mean, at least {MEAN_DB:g}"),
    ]
    if "unchanged" in rows:
        kept = float(np.mean(rows["unchanged"], 0)[0])
        verdicts.append(
            (kept >= UNCHANGED_DB, f"unchanged: {kept:.2f} dB, at least {UNCHANGED_DB:g}")
        )
    for edit, row in rows.items():
        if edit in ("unchanged", "grain"):
            continue
        gain, room = np.median(row[:, 0] - row[:, 1]), np.median(row[:, 2] - row[:, 1])
        if room > NEAR_DB:
            verdicts.append(
                (bool(gain >= GAIN_DB), f"{edit}: closer by {gain:.1f} dB, at least {GAIN_DB:g}")
            )
        else:
            right = moved.get(edit, -1.0) > 0
            text = f"{edit}: closer by {gain:.1f} dB with {room:.1f} dB of room; in the right direction"
            verdicts.append((right, text))
    return verdicts
