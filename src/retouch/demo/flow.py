"""The flow from noise to the edited latents: how latents are packed, and what a training step draws.

Rectified flow (arXiv:2209.03003): at noise level sigma a target is (1 - sigma) target + sigma noise, and
the model learns the velocity, noise minus target.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retouch.demo.texts import Texts

_GRAIN_SHARE = 0.95


@dataclass(slots=True)
class Pairs:
    """Sources and edited targets as packed latents (b, s, 4 z), with their instructions."""

    source: Tensor
    target: Tensor
    grain: Tensor  # (b, s, 4 z): the noise the target's grain is made of; zero without grain
    texts: Texts


def pack(latents: Tensor) -> Tensor:
    """Make tokens of 2x2 latents: (b, z, h, w) -> (b, h/2 w/2, 4 z)."""
    batch, z, height, width = latents.shape
    cells = latents.view(batch, z, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * z)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Undo `pack` for a grid of (h/2, w/2) tokens: (b, s, 4 z) -> (b, z, h, w).

    >>> latents = torch.rand(2, 16, 4, 6)
    >>> bool((unpack(pack(latents), (2, 3)) == latents).all())
    True
    """
    height, width = grid
    cells = tokens.view(len(tokens), height, width, -1, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * height, 2 * width)


def draw_noise(grain: Tensor) -> Tensor:
    """Draw the noise of training: mostly the target's own grain, where there is any: (b, s, 4 z).

    Grain drawn apart from the noise is averaged away: no sampler of few steps makes it. Noise and
    target may be drawn together as long as the noise alone is normal (multisample flow matching,
    arXiv:2304.14772), and then the grain to make can be read off the noise.
    """
    share = torch.where(grain.square().mean((1, 2), keepdim=True) > 0, _GRAIN_SHARE, 0.0)
    return share * grain + (1 - share**2).sqrt() * torch.randn_like(grain)


def draw_sigmas(count: int, device: str) -> Tensor:
    """Draw noise levels in 0.02..1, most near 1, where the edit is decided: (count,)."""
    return 1 - 0.98 * torch.rand(count, device=device) ** 1.7


@torch.no_grad()
def channel_weights(decode: Callable[[Tensor], Tensor], latents: Tensor, std: Tensor) -> Tensor:
    """Weigh the latent channels by the root of what a unit of each moves in pixels: (4 z,), mean 1.

    Takes the decoder, latents (b, z, h, w) as it expects them, and their standard deviations (z,).
    """
    before = decode(latents)
    effects = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += 0.3 * std[channel] * torch.randn_like(moved[:, channel])
        effects.append((decode(moved) - before).square().mean())
    weights = torch.stack(effects)
    weights = (weights / weights.mean()).clamp(0.02, 8).sqrt()
    return (weights / weights.mean()).repeat_interleave(4)
