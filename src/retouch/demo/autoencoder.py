"""The autoencoder for still images: 2-D forward passes, near-linear initialization, and the loss.

For one frame a causal convolution reads only its last temporal slice, because the frames before it are
zero padding. So `conv2d` with that slice computes the same function, without caches.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CONSTANT = 4.0
_COLOR, _CONSTANT_CHANNEL = slice(0, 3), 3  # at initialization: colour means, then the constant


def _conv(layer: Any, x: Tensor) -> Tensor:
    """Convolve one frame: (b, c, h, w)."""
    padding = (layer._padding[2], layer._padding[0])  # noqa: SLF001 - diffusers pads by hand
    return functional.conv2d(x, layer.weight[:, :, -1], layer.bias, layer.stride[1:], padding)


def _norm(layer: Any, x: Tensor) -> Tensor:
    """Divide by the root mean square over the channels, in fp32: (b, c, h, w)."""
    wide = x.permute(0, 2, 3, 1).float()  # (b, c, h, w) -> (b, h, w, c): contiguous in memory
    gains: Tensor = layer.gamma.view(-1)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-12) * gains
    return wide.to(x.dtype).permute(0, 3, 1, 2)  # (b, h, w, c) -> (b, c, h, w)


def _norm_silu(layer: Any, x: Tensor) -> Tensor:
    return functional.silu(_norm(layer, x))


def _residual(block: Any, x: Tensor) -> Tensor:
    hidden = _conv(block.conv1, _norm_silu(block.norm1, x))
    hidden = _conv(block.conv2, _norm_silu(block.norm2, hidden))
    is_identity = isinstance(block.conv_shortcut, nn.Identity)
    return hidden + (x if is_identity else _conv(block.conv_shortcut, x))


def _attention(block: Any, x: Tensor) -> Tensor:
    """Single-head attention over all positions: (b, c, h, w)."""
    qkv = block.to_qkv(_norm(block.norm, x)).flatten(2).transpose(1, 2)  # (b, h w, 3 c)
    q, k, v = qkv.unsqueeze(1).chunk(3, -1)  # 3 x (b, 1, h w, c)
    attended = functional.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)  # (b, c, h w)
    out: Tensor = x + block.proj(attended.reshape(x.shape))
    return out


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _attention(block.attentions[0], _residual(block.resnets[0], x))
    return _residual(block.resnets[1], x)


def encode(vae: Any, images: Tensor) -> Tensor:
    """Return the mean latents of images in -1..1: (b, 3, h, w) -> (b, z, h/8, w/8).

    Computes what `AutoencoderKLQwenImage.encode` does for one frame; h and w are multiples of 8.
    """
    net = vae.encoder
    x = _conv(net.conv_in, images.contiguous(memory_format=torch.channels_last))
    for block in net.down_blocks:
        x = block.resample(x) if hasattr(block, "resample") else _residual(block, x)
    x = _conv(net.conv_out, _norm_silu(net.norm_out, _middle(net.mid_block, x)))
    return _conv(vae.quant_conv, x).chunk(2, 1)[0]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return the images of latents, roughly in -1..1: (b, z, h, w) -> (b, 3, 8h, 8w).

    Computes what `AutoencoderKLQwenImage.decode` does for one frame, without clamping.
    """
    net = vae.decoder
    x = latents.contiguous(memory_format=torch.channels_last)
    x = _middle(net.mid_block, _conv(net.conv_in, _conv(vae.post_quant_conv, x)))
    for block in net.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        for up in block.upsamplers or ():
            x = up.resample[1](functional.interpolate(x, scale_factor=2.0, mode="nearest-exact"))
    return _conv(net.conv_out, _norm_silu(net.norm_out, x))


def _last_slice(layer: Any) -> Tensor:
    """The weights that one frame meets: (out, in, k, k)."""
    weight: Tensor = layer.weight
    return weight[:, :, -1] if weight.ndim == 5 else weight  # noqa: PLR2004


def _init_shortcut(shortcut: Any) -> None:
    """Pass the channels that both sides share unchanged, and damp the others."""
    weight = shortcut.weight[:, :, 0, 0, 0]
    shared = min(weight.shape)
    weight *= 0.3
    weight[:shared] = 0
    weight[:shared, :shared] = torch.eye(shared)
    shortcut.bias.zero_()


def _zero_residual_branches(vae: Any) -> None:
    """Zero the last layer of every residual branch, and the temporal slices that one frame never meets."""
    for module in vae.modules():
        kernel = getattr(module, "_padding", None) and module.kernel_size
        if kernel and kernel[0] == 3:  # noqa: PLR2004
            if kernel[1] == 3:  # noqa: PLR2004 - the last slice takes over the others' variance
                module.weight[:, :, -1] *= 3**0.5
            module.weight[:, :, :-1] = 0
        if hasattr(module, "conv_shortcut"):
            _last_slice(module.conv2).zero_()
            module.conv2.bias.zero_()
            if not isinstance(module.conv_shortcut, nn.Identity):
                _init_shortcut(module.conv_shortcut)
        if hasattr(module, "to_qkv"):
            module.proj.weight.zero_()
            module.proj.bias.zero_()


def _norm_silu_slope(width: int) -> float:
    """The slope of SiLU(gamma x / rms) at 0 while the constant dominates the rms and gamma is 1/4."""
    return 0.25 / (_CONSTANT / math.sqrt(width)) / 2


def _init_encoder(vae: Any, colors: Tensor, gains: Tensor) -> None:
    net, three = vae.encoder, torch.arange(3)
    first = _last_slice(net.conv_in)
    first[:4] = 0
    first[:3, :, 1, 1] = colors
    net.conv_in.bias.zero_()
    net.conv_in.bias[_CONSTANT_CHANNEL] = _CONSTANT
    for block in net.down_blocks:
        if hasattr(block, "resample"):
            down = block.resample[1]
            down.bias.zero_()
            down.weight[:4] = 0
            down.weight[three, three, :2, :2] = 0.25  # the mean of four pixels
            down.weight[_CONSTANT_CHANNEL, _CONSTANT_CHANNEL, 0, 0] = 1
    net.norm_out.gamma *= 0.25
    last = _last_slice(net.conv_out)
    z = len(last) // 2
    last[z:] = 0
    last[:3] = 0
    last[three, three, 1, 1] = gains / _norm_silu_slope(last.shape[1])
    net.conv_out.bias.zero_()
    net.conv_out.bias[z:] = -6  # the log variance; nothing here samples from it


def _init_decoder(vae: Any, colors: Tensor, gains: Tensor) -> None:
    net, three = vae.decoder, torch.arange(3)
    first = _last_slice(net.conv_in)
    first[:4] = 0
    first[three, three, 1, 1] = 1 / gains
    net.conv_in.bias.zero_()
    net.conv_in.bias[_CONSTANT_CHANNEL] = _CONSTANT
    tent = torch.tensor([0.25, 0.5, 0.25])
    for block in net.up_blocks:
        for upsampler in block.upsamplers or ():
            up = upsampler.resample[1]
            up.bias.zero_()
            up.weight[:4] = 0
            up.weight[three, three] = tent[:, None] * tent
            up.weight[_CONSTANT_CHANNEL, _CONSTANT_CHANNEL, 1, 1] = 1
    net.norm_out.gamma *= 0.25
    last = _last_slice(net.conv_out)
    last *= 0.3
    last[:, :4] = 0
    last[:, :3, 1, 1] = colors.t() / _norm_silu_slope(last.shape[1])
    net.conv_out.bias.zero_()


def _whiten(vae: Any, latents: Tensor) -> None:
    """Make the latents uncorrelated with variance 1, colour means first (Cholesky whitening)."""
    flat = latents.transpose(0, 1).flatten(1)  # (b, z, h, w) -> (z, b h w)
    mean, covariance = flat.mean(1), torch.cov(flat)
    z = len(mean)
    root = torch.linalg.cholesky(covariance + 2e-3 * covariance.diag().mean() * torch.eye(z))
    inverse = torch.linalg.inv(root)
    vae.quant_conv.weight[:z, :z, 0, 0, 0] = inverse
    vae.quant_conv.bias[:z] = -inverse @ mean
    vae.post_quant_conv.weight[_COLOR, _COLOR, 0, 0, 0] = root[_COLOR, _COLOR]
    vae.post_quant_conv.bias[_COLOR] = mean[_COLOR]


@torch.no_grad()
def init_near_linear(vae: Any, images: Tensor) -> None:
    """Initialize to a blurred copy with white latents.

    Residual branches output zero and shortcuts are identities. Three channels carry colour means, a
    fourth a constant: beside it the norms keep the amplitude of small values. `images` are
    (b, 3, h, w) in -1..1, on the CPU; their latents give the whitening.
    """
    colors = functional.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]), dim=1)
    gains = torch.tensor([1.0, 2.5, 4.0])
    _zero_residual_branches(vae)
    _init_encoder(vae, colors, gains)
    _init_decoder(vae, colors, gains)
    for layer in (vae.quant_conv, vae.post_quant_conv):
        layer.weight.zero_()
        layer.weight[:, :, 0, 0, 0] = torch.eye(len(layer.weight))
        layer.bias.zero_()
    _whiten(vae, encode(vae, images))


def loss(vae: Any, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and the squared error of a reconstruction from slightly noisy latents.

    Takes images (b, 3, h, w) in -1..1 and normal noise (b, z, h/8, w/8). The decoder's output is not
    clamped: clamping would stop the gradient exactly where the error is large. There is no KL term,
    under which most latents die; a penalty keeps the latents white with variance 1 instead.
    """
    latents = encode(vae, images).float()
    error = decode(vae, latents + 0.05 * noise).float() - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    coarse = functional.avg_pool2d(error, 8).abs().mean()
    flat = latents.transpose(0, 1).flatten(1)  # (b, z, h, w) -> (z, b h w)
    z = len(flat)
    off_white = flat @ flat.t() / flat.shape[1] - torch.eye(z, device=flat.device)
    white = off_white.square().sum() / z
    square = error.square().mean()
    total = error.abs().mean() + 0.5 * edges + 0.5 * coarse + 4 * square + 0.005 * white
    return total, square.detach()
