"""The edits the demo checkpoint knows, as exact tensor functions: what it learns from and is measured against.

Every edit takes images (b, 3, h, w) in 0..1 and an amount: 1 is the plain request, `SLIGHT` and `STRONG`
are what the words "slightly" and "strongly" mean. The result is clamped to 0..1 by `apply`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

SLIGHT, PLAIN, STRONG = 0.5, 1.0, 1.5

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_SEPIA = (1.12, 0.9, 0.66)
_GRAIN_SIGMA_PX = 1.4  # one-pixel grain does not survive an 8x autoencoder
_BLUR_SIGMA_PX = 3.0
_SHARPEN_SIGMA_PX = 2.0


@dataclass(frozen=True, slots=True)
class Change:
    """One edit of an instruction: a name out of `EDITS` and how much of it."""

    name: str
    amount: float = PLAIN


def _weights(image: Tensor, values: Sequence[float]) -> Tensor:
    """Three channel weights beside `image`: (3, 1, 1)."""
    return torch.tensor(values, device=image.device, dtype=image.dtype).view(3, 1, 1)


def luma(image: Tensor) -> Tensor:
    """Weigh the channels to brightness: (..., 3, h, w) -> (..., 1, h, w)."""
    return (image * _weights(image, _LUMA)).sum(-3, keepdim=True)


def gaussian(image: Tensor, sigma_px: float) -> Tensor:
    """Blur with a normal distribution of `sigma_px`, mirrored at the border: (b, c, h, w)."""
    reach = min(int(3 * sigma_px + 0.5), min(image.shape[-2:]) - 1)
    at = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(at**2) / (2 * sigma_px**2))
    kernel = kernel / kernel.sum()
    planes = image.reshape(-1, 1, *image.shape[-2:])  # (b, c, h, w) -> (b c, 1, h, w)
    planes = functional.pad(planes, (reach,) * 4, mode="reflect")
    planes = functional.conv2d(
        functional.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)
    )
    return planes.view(image.shape)


def _tint(red: float, green: float, blue: float) -> Callable[[Tensor, float], Tensor]:
    gains = torch.tensor([red, green, blue])
    return lambda image, amount: image * _weights(image, (1 + amount * (gains - 1)).tolist())


def _brighten(image: Tensor, amount: float) -> Tensor:
    return 1 - (1 - image) ** (1 + 0.8 * amount)


def _darken(image: Tensor, amount: float) -> Tensor:
    return image ** (1 + 0.9 * amount) * (1 - 0.15 * amount)


def _spread(gain: float) -> Callable[[Tensor, float], Tensor]:
    """Move values away from middle grey (gain > 0) or towards it."""
    return lambda image, amount: (image - 0.5) * (1 + gain * amount) + 0.5


def _saturate(gain: float) -> Callable[[Tensor, float], Tensor]:
    """Move values away from their own grey (gain > 0) or towards it."""
    return lambda image, amount: torch.lerp(luma(image), image, 1 + gain * amount)


def _to_grey(image: Tensor, amount: float) -> Tensor:
    return torch.lerp(image, luma(image).expand_as(image), min(amount, 1.0))


def _to_sepia(image: Tensor, amount: float) -> Tensor:
    return torch.lerp(image, luma(image) * _weights(image, _SEPIA), min(amount, 1.0))


def grain(image: Tensor, amount: float) -> Tensor:
    """Add grey grain of about three pixels; the standard deviation is 0.06, 0.1 or 0.14."""
    noise = torch.randn_like(image[:, :1])
    noise = gaussian(noise, _GRAIN_SIGMA_PX)
    noise = noise / noise.std(dim=(1, 2, 3), keepdim=True)
    return image + (0.02 + 0.08 * amount) * noise


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
    "more_contrast": _spread(0.7),
    "less_contrast": _spread(-0.5),
    "black_and_white": _to_grey,
    "sepia": _to_sepia,
    "invert": lambda image, _: 1 - image,
    "more_saturation": _saturate(0.9),
    "less_saturation": _saturate(-0.6),
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


def apply(image: Tensor, changes: Sequence[Change]) -> Tensor:
    """Make the changes one after the other, each clamped to 0..1: (b, 3, h, w).

    Grain is drawn from torch's default generator of the image's device.

    >>> apply(torch.full((1, 3, 2, 2), 0.25), [Change("invert")]).unique().item()
    0.75
    """
    for change in changes:
        image = EDITS[change.name](image, change.amount).clamp(0, 1)
    return image


def apply_rows(images: Tensor, changes: Sequence[Sequence[Change]]) -> Tensor:
    """Make each row's own changes; rows that share one run through it together: (b, 3, h, w)."""
    images = images.clone()
    for turn in range(max(map(len, changes), default=0)):
        rows: dict[Change, list[int]] = {}
        for row, wanted in enumerate(changes):
            if turn < len(wanted) and wanted[turn].name != "unchanged":
                rows.setdefault(wanted[turn], []).append(row)
        for change, group in rows.items():
            at = torch.tensor(group, device=images.device)
            images[at] = apply(images[at], [change])
    return images
