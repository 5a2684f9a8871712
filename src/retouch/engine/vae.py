"""The video autoencoder used on single frames, and latents packed into the transformer's tokens.

Upstream pads each image with two empty frames, convolves over all three and keeps a copy of every
layer's input for the next frame (diffusers `autoencoder_kl_qwenimage.py`). For one frame only the
last slice of each kernel meets the image, so a 2-D convolution gives the same result with a third
of the memory.
"""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageCausalConv3d,
    QwenImageUpsample,
)
from torch import nn
from torch.nn import functional

from retouch.engine.memory.plan import WHOLE_AREA_PX
from retouch.engine.stripes import decode_in_stripes, encode_in_stripes


class SingleFrameVae:
    """`AutoencoderKLQwenImage` (`module`) for single images, from pixels to tokens and back.

    The module's causal convolutions and upsamplings are replaced in place by plain ones over the
    same weights.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self.token_px: int = 2 << len(module.temperal_downsample)
        """Pixels along a side of one token: 2 latents, each a square of pixels."""
        self.channels: int = module.config.z_dim
        """Channels of a latent."""
        for part in module.modules():
            if isinstance(part, QwenImageCausalConv3d):
                part.__class__ = _SingleFrameConv
            elif isinstance(part, QwenImageUpsample):
                # Repeating pixels rounds nothing: upstream's detour through float32 is not needed.
                part.__class__ = nn.Upsample  # type: ignore[assignment]

    def encode(self, pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Encode pixels (1, 3, h, w; -1 to 1) to float32 tokens (1, token, 4 c).

        Uses the posterior mode, without sampling.
        """
        frame = pixels.to(device, self._module.dtype)[:, :, None]  # (b, 3, h, w) -> (b, 3, 1, h, w)
        encoder, is_large = self._module.encoder, pixels[0, 0].numel() > WHOLE_AREA_PX
        encoded = encode_in_stripes(encoder, frame) if is_large else encoder(frame)
        moments = self._module.quant_conv(encoded)
        mode = moments.chunk(2, dim=1)[0].float()  # (b, 2 c, 1, h/8, w/8) -> (b, c, 1, h/8, w/8)
        mean, std = self._latent_scale(device)
        return pack(((mode - mean) / std)[:, :, 0])

    def decode(self, tokens: torch.Tensor, *, rows: int) -> torch.Tensor:
        """Decode tokens (1, token, 4 c) in `rows` rows to float32 pixels (1, 3, h, w; -1 to 1)."""
        mean, std = self._latent_scale(tokens.device)
        latents = unpack(tokens, rows=rows)[:, :, None] * std + mean  # (b, c, 1, h/8, w/8)
        frame = self._module.post_quant_conv(latents.to(self._module.dtype))
        decoder, is_large = self._module.decoder, tokens.shape[1] * self.token_px**2 > WHOLE_AREA_PX
        pixels: torch.Tensor = decode_in_stripes(decoder, frame) if is_large else decoder(frame)
        return pixels[:, :, 0].clamp_(-1.0, 1.0).float()  # (b, 3, 1, h, w) -> (b, 3, h, w)

    def _latent_scale(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of the latents: (1, c, 1, 1, 1)."""
        config = self._module.config
        mean, std = (
            torch.tensor(values, device=device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, std


class _SingleFrameConv(QwenImageCausalConv3d):
    """A causal 3-D convolution applied to one frame."""

    def forward(self, x: torch.Tensor, cache_x: Any = None) -> torch.Tensor:  # noqa: ARG002 - upstream's signature
        left, _, top, *_ = self._padding  # upstream moves its padding there
        convolved = functional.conv2d(
            x[:, :, 0],  # (b, c, 1, h, w) -> (b, c, h, w)
            self.weight[:, :, -1],  # (out, in, frame, kh, kw): the present frame's slice
            self.bias,
            stride=self.stride[1:],
            padding=(int(top), int(left)),
        )
        return convolved[:, :, None]


def draw_noise(
    channels: int, *, rows: int, columns: int, generator: torch.Generator
) -> torch.Tensor:
    """Draw the initial noise as float32 tokens (1, rows x columns, 4 c).

    Equal for equal seeds, whatever precision the model computes in.
    """
    return pack(torch.randn((1, channels, 2 * rows, 2 * columns), generator=generator))


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Pack latents (b, c, h, w) into tokens of 2 x 2 each: (b, h/2 w/2, 4 c)."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    # (b, c, h/2, 2, w/2, 2) -> (b, h/2, w/2, c, 2, 2) -> (b, h/2 w/2, 4 c)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def unpack(tokens: torch.Tensor, *, rows: int) -> torch.Tensor:
    """Undo `pack`: (b, rows x columns, 4 c) -> (b, c, 2 rows, 2 columns)."""
    batch, count, width = tokens.shape
    patches = tokens.view(batch, rows, count // rows, width // 4, 2, 2)
    # (b, h/2, w/2, c, 2, 2) -> (b, c, h/2, 2, w/2, 2) -> (b, c, h, w)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, width // 4, 2 * rows, -1)
