"""The video autoencoder for still images: the same result without what it keeps for further frames.

Upstream pads each image with two empty frames, convolves over all three, and keeps a copy of every
layer's input for the frame to come (diffusers `autoencoder_kl_qwenimage.py`). For one frame only the
last slice of each kernel meets the image, so a plain convolution gives the same.
"""

from types import MethodType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import (
    QwenImageCausalConv3d,
    QwenImageUpsample,
)
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import nn
from torch.nn import functional


def make_still(vae: Any) -> None:
    """Let `vae.encode` and `vae.decode` take one frame and no more, with a third of the memory."""
    vae._encode = MethodType(_encode, vae)  # noqa: SLF001 - between its public methods and its layers
    vae._decode = MethodType(_decode, vae)  # noqa: SLF001 - as above
    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d):
            module.forward = MethodType(_convolve, module)  # type: ignore[method-assign]
        elif isinstance(module, QwenImageUpsample):
            # Repeating pixels rounds nothing, so the detour through float32 is not needed.
            module.forward = MethodType(nn.Upsample.forward, module)  # type: ignore[method-assign]


def _encode(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    moments: torch.Tensor = vae.quant_conv(vae.encoder(pixels))
    return moments


def _decode(vae: Any, latents: torch.Tensor, return_dict: bool = True) -> Any:  # noqa: ARG001 - as called
    return DecoderOutput(sample=vae.decoder(vae.post_quant_conv(latents)).clamp_(-1.0, 1.0))


def _convolve(conv: Any, frames: torch.Tensor) -> torch.Tensor:
    """Convolve (b, c, 1, h, w) with the slice of the kernel that is for the present frame."""
    sides = conv._padding  # noqa: SLF001 - upstream moves its padding there
    return functional.conv2d(
        frames[:, :, 0],
        conv.weight[:, :, -1],
        conv.bias,
        stride=conv.stride[1:],
        padding=(sides[2], sides[0]),
    )[:, :, None]
