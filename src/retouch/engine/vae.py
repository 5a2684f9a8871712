"""Between pixels and the transformer's tokens: the autoencoder, and latents in patches of 2 x 2."""

from typing import Any

import torch


def side_px(vae: Any) -> int:
    """Return the pixels along a side of one token: two latents, each a block of the autoencoder's."""
    halvings = len(vae.temperal_downsample)
    return 2 << halvings


def encode(vae: Any, pixels: torch.Tensor, *, device: torch.device) -> torch.Tensor:
    """Encode `pixels` (1, 3, height, width; -1 to 1) to tokens in float32, without drawing lots."""
    still = pixels.to(device, vae.dtype)[:, :, None]
    latents = vae.encode(still).latent_dist.mode().float()
    mean, std = _scale(vae, device)
    return pack(((latents - mean) / std)[:, :, 0])


def decode(vae: Any, tokens: torch.Tensor, *, rows: int) -> torch.Tensor:
    """Decode tokens in `rows` to pixels (1, 3, height, width), about -1 to 1."""
    mean, std = _scale(vae, tokens.device)
    latents = unpack(tokens, rows=rows)[:, :, None] * std + mean
    pixels: torch.Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    return pixels[:, :, 0].float()


def draw(channels: int, *, rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Draw the first noise in float32, the same for a seed whatever the model computes in."""
    return pack(torch.randn((1, channels, 2 * rows, 2 * columns), generator=generator))


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Make a token of each 2 x 2 latents."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)  # (b, h/2 w/2, c 2 2)


def unpack(tokens: torch.Tensor, *, rows: int) -> torch.Tensor:
    """Undo `pack`."""
    batch, count, width = tokens.shape
    patches = tokens.view(batch, rows, count // rows, width // 4, 2, 2)
    latents = patches.permute(0, 3, 1, 4, 2, 5)  # (b, c, h/2, 2, w/2, 2)
    return latents.reshape(batch, width // 4, 2 * rows, -1)


def _scale(vae: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (1, -1, 1, 1, 1)
    mean, std = vae.config.latents_mean, vae.config.latents_std
    return torch.tensor(mean, device=device).view(shape), torch.tensor(std, device=device).view(
        shape
    )
