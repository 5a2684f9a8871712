"""Stage 1: the autoencoder, trained on still pictures as the 2-D network that it is for one frame.

2-D training of one frame: a causal convolution sees a lone frame through its last temporal slice only
(the frames before are zero padding), so `conv2d` with that slice is the same function, without caches.
Near-linear start: residual branches silent and short cuts identities, colour means in three channels
and a constant in a fourth (norms keep what is small beside it): training begins at a blurred copy.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_CONSTANT = 4.0
_COLOR, _LEVEL = slice(0, 3), 3  # channels of the start: colour means, the constant


def _conv(layer: Any, x: Tensor) -> Tensor:
    """Convolve one frame: (b, c, h, w)."""
    pad = (layer._padding[2], layer._padding[0])  # noqa: SLF001 - diffusers pads by hand
    return functional.conv2d(x, layer.weight[:, :, -1], layer.bias, layer.stride[1:], pad)


def _norm(layer: Any, x: Tensor) -> Tensor:
    """Divide by the root mean square over the channels, in fp32: (b, c, h, w)."""
    wide = x.permute(0, 2, 3, 1).float()  # channels last, where the memory is contiguous
    gains: Tensor = layer.gamma.view(-1)
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-12) * gains
    return wide.to(x.dtype).permute(0, 3, 1, 2)  # (b, h, w, c) -> (b, c, h, w)


def _norm_silu(layer: Any, x: Tensor) -> Tensor:
    return functional.silu(_norm(layer, x))


def _residual(block: Any, x: Tensor) -> Tensor:
    inner = _conv(block.conv1, _norm_silu(block.norm1, x))
    inner = _conv(block.conv2, _norm_silu(block.norm2, inner))
    plain = isinstance(block.conv_shortcut, nn.Identity)
    return inner + (x if plain else _conv(block.conv_shortcut, x))


def _attention(block: Any, x: Tensor) -> Tensor:
    """Attend over all places with one head: (b, c, h, w)."""
    qkv = block.to_qkv(_norm(block.norm, x)).flatten(2).transpose(1, 2)  # (b, h w, 3 c)
    q, k, v = qkv.unsqueeze(1).chunk(3, -1)
    mixed = functional.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2)  # (b, c, h w)
    out: Tensor = x + block.proj(mixed.reshape(x.shape))
    return out


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _attention(block.attentions[0], _residual(block.resnets[0], x))
    return _residual(block.resnets[1], x)


def encode(vae: Any, images: Tensor) -> Tensor:
    """Give the mean latents of images in -1..1: (b, 3, h, w) -> (b, z, h/8, w/8).

    Computes what `AutoencoderKLQwenImage.encode` does for one frame; h and w are multiples of 8.
    """
    net = vae.encoder
    x = _conv(net.conv_in, images.contiguous(memory_format=torch.channels_last))
    for block in net.down_blocks:
        x = block.resample(x) if hasattr(block, "resample") else _residual(block, x)
    x = _conv(net.conv_out, _norm_silu(net.norm_out, _middle(net.mid_block, x)))
    return _conv(vae.quant_conv, x).chunk(2, 1)[0]


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Give the images of latents in about -1..1: (b, z, h, w) -> (b, 3, 8h, 8w).

    Computes what `AutoencoderKLQwenImage.decode` does for one frame, but does not clamp.
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


def _last(layer: Any) -> Tensor:
    """The weights one frame meets: (out, in, k, k)."""
    weight: Tensor = layer.weight
    return weight[:, :, -1] if weight.ndim == 5 else weight  # noqa: PLR2004


def _silence_shortcut(shortcut: Any) -> None:
    """Let the channels that both sides have pass as they are, and whisper the rest."""
    weight = shortcut.weight[:, :, 0, 0, 0]
    same = min(weight.shape)
    weight *= 0.3
    weight[:same] = 0
    weight[:same, :same] = torch.eye(same)
    shortcut.bias.zero_()


def _silence(vae: Any) -> None:
    """Zero the temporal slices no still meets and the ends of all residual branches."""
    for module in vae.modules():
        kernel = getattr(module, "_padding", None) and module.kernel_size
        if kernel and kernel[0] == 3:  # noqa: PLR2004
            if kernel[1] == 3:  # noqa: PLR2004 - the last slice gets the others' share of the scale
                module.weight[:, :, -1] *= 3**0.5
            module.weight[:, :, :-1] = 0
        if hasattr(module, "conv_shortcut"):
            _last(module.conv2).zero_()
            module.conv2.bias.zero_()
            if not isinstance(module.conv_shortcut, nn.Identity):
                _silence_shortcut(module.conv_shortcut)
        if hasattr(module, "to_qkv"):
            module.proj.weight.zero_()
            module.proj.bias.zero_()


def _through_norm(width: int) -> float:
    """The slope of SiLU(gamma x / rms) at 0 while the constant rules the rms and gamma is 1/4."""
    return 0.25 / (_CONSTANT / math.sqrt(width)) / 2


def _start_encoder(vae: Any, colors: Tensor, gains: Tensor) -> None:
    net, three = vae.encoder, torch.arange(3)
    first = _last(net.conv_in)
    first[:4] = 0
    first[:3, :, 1, 1] = colors
    net.conv_in.bias.zero_()
    net.conv_in.bias[_LEVEL] = _CONSTANT
    for block in net.down_blocks:
        if hasattr(block, "resample"):
            down = block.resample[1]
            down.bias.zero_()
            down.weight[:4] = 0
            down.weight[three, three, :2, :2] = 0.25  # the mean of four pixels
            down.weight[_LEVEL, _LEVEL, 0, 0] = 1
    net.norm_out.gamma *= 0.25
    last = _last(net.conv_out)
    z = len(last) // 2
    last[z:] = 0
    last[:3] = 0
    last[three, three, 1, 1] = gains / _through_norm(last.shape[1])
    net.conv_out.bias.zero_()
    net.conv_out.bias[z:] = -6  # the logarithm of the variance, which nobody samples here


def _start_decoder(vae: Any, colors: Tensor, gains: Tensor) -> None:
    net, three = vae.decoder, torch.arange(3)
    first = _last(net.conv_in)
    first[:4] = 0
    first[three, three, 1, 1] = 1 / gains
    net.conv_in.bias.zero_()
    net.conv_in.bias[_LEVEL] = _CONSTANT
    hat = torch.tensor([0.25, 0.5, 0.25])
    for block in net.up_blocks:
        for up in block.upsamplers or ():
            grow = up.resample[1]
            grow.bias.zero_()
            grow.weight[:4] = 0
            grow.weight[three, three] = hat[:, None] * hat
            grow.weight[_LEVEL, _LEVEL, 1, 1] = 1
    net.norm_out.gamma *= 0.25
    last = _last(net.conv_out)
    last *= 0.3
    last[:, :4] = 0
    last[:, :3, 1, 1] = colors.t() / _through_norm(last.shape[1])
    net.conv_out.bias.zero_()


def _whiten(vae: Any, latents: Tensor) -> None:
    """Make the latents uncorrelated with variance 1: colour means first, then what they do not tell."""
    flat = latents.transpose(0, 1).flatten(1)  # (b, z, h, w) -> (z, b h w)
    mean, spread = flat.mean(1), torch.cov(flat)
    z = len(mean)
    root = torch.linalg.cholesky(spread + 2e-3 * spread.diag().mean() * torch.eye(z))
    inverse = torch.linalg.inv(root)
    vae.quant_conv.weight[:z, :z, 0, 0, 0] = inverse
    vae.quant_conv.bias[:z] = -inverse @ mean
    vae.post_quant_conv.weight[_COLOR, _COLOR, 0, 0, 0] = root[_COLOR, _COLOR]
    vae.post_quant_conv.bias[_COLOR] = mean[_COLOR]


@torch.no_grad()
def start_near_linear(vae: Any, images: Tensor) -> None:
    """Set the weights to a blurred copy with white latents; `images` (b, 3, h, w) in -1..1, on the CPU."""
    colors = functional.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]), dim=1)
    gains = torch.tensor([1.0, 2.5, 4.0])
    _silence(vae)
    _start_encoder(vae, colors, gains)
    _start_decoder(vae, colors, gains)
    for layer in (vae.quant_conv, vae.post_quant_conv):
        layer.weight.zero_()
        layer.weight[:, :, 0, 0, 0] = torch.eye(len(layer.weight))
        layer.bias.zero_()
    _whiten(vae, encode(vae, images))


def loss(vae: Any, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Give the loss and the squared error of a reconstruction from latents with a little noise.

    Takes images (b, 3, h, w) in -1..1 and normal noise (b, z, h/8, w/8). The decoder is judged
    before clamping: a clamped one gets no gradient where it is far off. No KL term: it would let
    most latents die; they are held white and of variance 1 instead.
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
