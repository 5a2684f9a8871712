"""Rectified flow from noise to edited latents: packing, and what a training step samples.

At noise level sigma the model sees (1 - sigma) target + sigma noise and learns the velocity, noise
minus target (arXiv:2209.03003).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retouch.demo.prompts import PromptBatch

_GRAIN_SHARE = 0.95


@dataclass(slots=True)
class Pairs:
    """Sources and edited targets as packed latents (b, s, 4 z), with their prompts."""

    source: Tensor
    target: Tensor
    grain: Tensor  # (b, s, 4 z): white noise that the target's grain comes from; zero without grain
    prompts: PromptBatch


def pack(latents: Tensor) -> Tensor:
    """Make one token of 2x2 latents: (b, z, h, w) -> (b, h/2 w/2, 4 z)."""
    batch, z, height, width = latents.shape
    cells = latents.view(batch, z, height // 2, 2, width // 2, 2)
    # (b, z, h/2, 2, w/2, 2) -> (b, h/2, w/2, z, 2, 2) -> (b, h/2 w/2, 4 z)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * z)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Undo `pack` for a grid of (h/2, w/2) tokens: (b, s, 4 z) -> (b, z, h, w).

    >>> latents = torch.rand(2, 16, 4, 6)
    >>> bool((unpack(pack(latents), (2, 3)) == latents).all())
    True
    """
    height, width = grid
    cells = tokens.view(len(tokens), height, width, -1, 2, 2)
    # (b, h/2, w/2, z, 2, 2) -> (b, z, h/2, 2, w/2, 2) -> (b, z, h, w)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, 2 * height, 2 * width)


def sample_noise(grain: Tensor) -> Tensor:
    """Sample training noise that mostly is the target's own grain, where it has any: (b, s, 4 z).

    Grain that is independent of the noise is averaged away: no few-step sampler produces it. Noise
    and target may be coupled as long as the noise alone is normal (multisample flow matching,
    arXiv:2304.14772). Then the model can read the grain to produce from the noise.
    """
    share = torch.where(grain.square().mean((1, 2), keepdim=True) > 0, _GRAIN_SHARE, 0.0)
    return share * grain + (1 - share**2).sqrt() * torch.randn_like(grain)


def sample_sigmas(count: int, device: str) -> Tensor:
    """Sample noise levels in 0.02..1, most of them near 1, where the edit is decided: (count,)."""
    return 1 - 0.98 * torch.rand(count, device=device) ** 1.7


@torch.no_grad()
def channel_weights(decode: Callable[[Tensor], Tensor], latents: Tensor, std: Tensor) -> Tensor:
    """Weight each latent channel by the root of its effect on pixels: (4 z,), mean 1.

    Takes the decoder, latents (b, z, h, w) as it expects them, and their standard deviations (z,).
    """
    before = decode(latents)
    effects = []
    for channel in range(latents.shape[1]):
        changed = latents.clone()
        changed[:, channel] += 0.3 * std[channel] * torch.randn_like(changed[:, channel])
        effects.append((decode(changed) - before).square().mean())
    weights = torch.stack(effects)
    weights = (weights / weights.mean()).clamp(0.02, 8).sqrt()
    return (weights / weights.mean()).repeat_interleave(4)  # (z,) -> (4 z,): the order of `pack`
