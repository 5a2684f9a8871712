"""What an edit did to a photo, as numbers: arrays (h, w, 3) in 0..1."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from retouch.engine.demo import edits

Pixels = npt.NDArray[np.float32]
HELD_OUT = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}


def to_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def to_tensor(pixels: Pixels) -> torch.Tensor:
    """(h, w, 3) -> (1, 3, h, w)."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]


def from_tensor(image: torch.Tensor) -> Pixels:
    """(1, 3, h, w) -> (h, w, 3)."""
    pixels: Pixels = image[0].permute(1, 2, 0).numpy()
    return pixels


def crop_to(image: Image.Image, width_px: int, height_px: int) -> Image.Image:
    """Scale to cover the size, then cut the middle out."""
    scale = max(width_px / image.width, height_px / image.height)
    size = (max(width_px, round(image.width * scale)), max(height_px, round(image.height * scale)))
    image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top = (image.width - width_px) // 2, (image.height - height_px) // 2
    return image.crop((left, top, left + width_px, top + height_px))


def held_out_photos(root: Path, edge_px: int = 512) -> dict[str, Image.Image]:
    """The photographs that training never sees, from the packages unpacked under `root`."""
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
    """What is finer than `sigma_px` in the brightness: (h, w)."""
    plane = _luma(pixels)
    return plane - _smooth(plane, sigma_px)


def _centre_over_corners(pixels: Pixels) -> float:
    plane = _luma(pixels)
    height, width = plane.shape
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    away = (down**2 + across**2) / 2
    return float(plane[away < 0.2].mean() - plane[away > 0.6].mean())


def _excess(*channels: int) -> Callable[[Pixels], float]:
    """How much the named channels lie over the others, on average."""
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


def correlation(one: Pixels, other: Pixels) -> float:
    """Pearson's correlation of the brightness of two pictures."""
    return float(np.corrcoef(_luma(one).ravel(), _luma(other).ravel())[0, 1])
