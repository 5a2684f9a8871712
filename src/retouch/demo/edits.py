"""The edits the demo checkpoint learns, as exact tensor functions. The benchmark compares against them.

Every edit takes images (b, 3, h, w) in 0..1 and an amount: 1 for the plain request, `SLIGHT` for
"slightly" and `STRONG` for "strongly". `apply` clamps the result to 0..1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SLIGHT, PLAIN, STRONG = 0.5, 1.0, 1.5

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_SEPIA = (1.12, 0.9, 0.66)
_DUOTONE = ((0.10, 0.06, 0.38), (1.0, 0.86, 0.50))  # indigo for black, cream for white
_GRAIN_SIGMA_PX = 1.2  # an 8x autoencoder loses finer grain
_BLUR_SIGMA_PX = 3.0
_SHARPEN_SIGMA_PX = 2.0


@dataclass(frozen=True, slots=True)
class Change:
    """One edit of an instruction: its name in `EDITS` and its amount."""

    name: str
    amount: float = PLAIN


def _channels(image: Tensor, values: Sequence[float]) -> Tensor:
    """Return one value per channel, on the device of `image`: (3, 1, 1)."""
    return torch.tensor(values, device=image.device, dtype=image.dtype).view(3, 1, 1)


def luma(image: Tensor) -> Tensor:
    """Return the BT.601 luma: (..., 3, h, w) -> (..., 1, h, w)."""
    return (image * _channels(image, _LUMA)).sum(-3, keepdim=True)


def gaussian(image: Tensor, sigma_px: float) -> Tensor:
    """Apply a Gaussian blur of `sigma_px`, with reflected borders: (b, c, h, w)."""
    radius = min(int(3 * sigma_px + 0.5), min(image.shape[-2:]) - 1)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma_px**2))
    kernel = kernel / kernel.sum()
    planes = image.reshape(-1, 1, *image.shape[-2:])  # (b, c, h, w) -> (b c, 1, h, w)
    planes = functional.pad(planes, (radius,) * 4, mode="reflect")
    planes = functional.conv2d(
        functional.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)
    )
    return planes.view(image.shape)


def _tint(red: float, green: float, blue: float) -> Callable[[Tensor, float], Tensor]:
    gains = torch.tensor([red, green, blue])
    return lambda image, amount: image * _channels(image, (1 + amount * (gains - 1)).tolist())


def _brighten(image: Tensor, amount: float) -> Tensor:
    return 1 - (1 - image) ** (1 + 0.8 * amount)


def _darken(image: Tensor, amount: float) -> Tensor:
    return image ** (1 + 0.9 * amount) * (1 - 0.15 * amount)


def _contrast(gain: float) -> Callable[[Tensor, float], Tensor]:
    """Move values away from mid-grey (gain > 0) or towards it."""
    return lambda image, amount: (image - 0.5) * (1 + gain * amount) + 0.5


def _saturation(gain: float) -> Callable[[Tensor, float], Tensor]:
    """Move colours away from their luma (gain > 0) or towards it."""
    return lambda image, amount: torch.lerp(luma(image), image, 1 + gain * amount)


def _to_grey(image: Tensor, amount: float) -> Tensor:
    return torch.lerp(image, luma(image).expand_as(image), min(amount, 1.0))


def _to_sepia(image: Tensor, amount: float) -> Tensor:
    return torch.lerp(image, luma(image) * _channels(image, _SEPIA), min(amount, 1.0))


def _to_duotone(image: Tensor, amount: float) -> Tensor:
    dark, light = (_channels(image, ink) for ink in _DUOTONE)
    return torch.lerp(image, torch.lerp(dark, light, luma(image)), min(amount, 1.0))


def grain(image: Tensor, amount: float) -> Tensor:
    """Add grey grain about three pixels wide, with standard deviation 0.03, 0.07 or 0.12."""
    noise = torch.randn_like(image[:, :1])
    noise = gaussian(noise, _GRAIN_SIGMA_PX)
    noise = noise / noise.std(dim=(1, 2, 3), keepdim=True)
    return image + (0.05 * amount + 0.02 * amount**2) * noise


def _blur(image: Tensor, amount: float) -> Tensor:
    return gaussian(image, _BLUR_SIGMA_PX * amount)


def _sharpen(image: Tensor, amount: float) -> Tensor:
    return image + 1.2 * amount * (image - gaussian(image, _SHARPEN_SIGMA_PX))


def _vignette(image: Tensor, amount: float) -> Tensor:
    height, width = image.shape[-2:]
    down = torch.linspace(-1, 1, height, device=image.device, dtype=image.dtype).view(-1, 1)
    across = torch.linspace(-1, 1, width, device=image.device, dtype=image.dtype)
    return image * (1 - 0.65 * amount * (down**2 + across**2) / 2)  # (b, 3, h, w) * (h, w)


EDITS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "warmer": _tint(1.22, 1.03, 0.74),
    "cooler": _tint(0.76, 0.98, 1.24),
    "brighter": _brighten,
    "darker": _darken,
    "more_contrast": _contrast(0.7),
    "less_contrast": _contrast(-0.5),
    "black_and_white": _to_grey,
    "sepia": _to_sepia,
    "invert": lambda image, _: 1 - image,
    "more_saturation": _saturation(0.9),
    "less_saturation": _saturation(-0.6),
    "grain": grain,
    "blur": _blur,
    "sharpen": _sharpen,
    "vignette": _vignette,
    "red": _tint(1.25, 0.62, 0.62),
    "green": _tint(0.62, 1.2, 0.62),
    "blue": _tint(0.6, 0.68, 1.3),
    "purple": _tint(1.1, 0.6, 1.2),
    "unchanged": lambda image, _: image,
}


ADAPTER_EDITS: dict[str, Callable[[Tensor, float], Tensor]] = {"duotone": _to_duotone}
"""What the checkpoint does not know, and an adapter to it learns."""


def apply(image: Tensor, changes: Sequence[Change]) -> Tensor:
    """Apply the changes in order, clamping to 0..1 after each: (b, 3, h, w).

    Grain draws from torch's default generator of the image's device.

    >>> apply(torch.full((1, 3, 2, 2), 0.25), [Change("invert")]).unique().item()
    0.75
    """
    for change in changes:
        edit = EDITS.get(change.name) or ADAPTER_EDITS[change.name]
        image = edit(image, change.amount).clamp(0, 1)
    return image


def apply_rows(images: Tensor, changes: Sequence[Sequence[Change]]) -> Tensor:
    """Apply each row's own changes; rows with the same change are batched: (b, 3, h, w)."""
    images = images.clone()
    for position in range(max(map(len, changes), default=0)):
        rows: dict[Change, list[int]] = {}
        for row, wanted in enumerate(changes):
            if position < len(wanted) and wanted[position].name != "unchanged":
                rows.setdefault(wanted[position], []).append(row)
        for change, group in rows.items():
            index = torch.tensor(group, device=images.device)
            images[index] = apply(images[index], [change])
    return images
