"""Initializes the transformer to the edit that changes nothing.

Copy heads: in every block two heads have constant queries and keys, so the rotary embedding alone makes
each target token attend to the source token at its position. Block 0 copies that token's latents.
"""

import math
from typing import Any

import torch
from torch import Tensor

from retouch.demo.transformer import HEAD_WIDTH

_CONSTANT, _CONSTANTS = 8.0, 8  # its value, and the number of dimensions that hold it
_COPY_GAIN = 3.6
"""Gain of the copy heads' queries and keys: 0.99 of the attention goes to one token."""
_COPY_HEADS, _READ_HEADS = slice(0, 2), slice(2, 4)


def _fix_heads(linear: Any, norm: Any, heads: slice, wanted: Tensor) -> None:
    """Give `heads` the same query or key (32,) at every token, up to the length that the norm sets."""
    nonzero = wanted != 0
    bias = linear.bias.view(-1, HEAD_WIDTH)[heads]
    linear.weight.view(-1, HEAD_WIDTH, linear.in_features)[heads] = 0
    # The norm multiplies by its weights, so divide by them here.
    bias[:] = torch.where(nonzero, wanted / norm.weight, 0)


def _init_copy_heads(attn: Any) -> None:
    """Make heads 0 and 1 attend to the token at the same position, one frame on.

    Of the 16 rotary pairs, 0-3 rotate with the frame, 4-9 with the row and 10-15 with the column. The
    first pair of each group separates neighbours; the second separates tokens a full turn apart.
    """
    near, far = 17.4**0.5, 10.0**0.5
    query = torch.zeros(HEAD_WIDTH // 2, 2)
    query[[0, 4, 10], 0] = near
    query[[5, 11], 0] = far
    key = query.clone()
    key[0] = near * torch.tensor([math.cos(1.0), -math.sin(1.0)])  # rotated back by one frame
    used = torch.tensor([0, 1, 8, 9, 10, 11, 20, 21, 22, 23])
    for linear, norm, wanted in ((attn.to_q, attn.norm_q, query), (attn.to_k, attn.norm_k, key)):
        norm.weight[used] = _COPY_GAIN
        _fix_heads(linear, norm, _COPY_HEADS, wanted.flatten())


def _init_read_heads(attn: Any) -> None:
    """Make heads 2 and 3 attend equally to all text and to no image, by the pairs that rotate least."""
    slowest = torch.tensor([6, 18, 30])
    vector = torch.zeros(HEAD_WIDTH)
    vector[slowest] = 1.0
    _fix_heads(attn.to_q, attn.norm_q, _READ_HEADS, vector)
    _fix_heads(attn.to_k, attn.norm_k, _READ_HEADS, -vector)
    _fix_heads(attn.add_k_proj, attn.norm_added_k, _READ_HEADS, vector)


def _init_block(block: Any, constant: slice, free: slice) -> None:
    """Open the gates, set the fixed heads, and zero every other output."""
    width = len(block.attn.to_out[0].weight)
    for modulation in (block.img_mod[1], block.txt_mod[1]):
        modulation.weight.zero_()
        modulation.bias.zero_()
        # (6 width,) -> (2, 3, width): attention and feed-forward, each with shift, scale, gate
        shift_scale_gate = modulation.bias.view(2, 3, width)
        shift_scale_gate[:, 2] = 1
    _init_copy_heads(block.attn)
    _init_read_heads(block.attn)
    read = slice(_READ_HEADS.start * HEAD_WIDTH, _READ_HEADS.stop * HEAD_WIDTH)
    output = block.attn.to_out[0].weight.zero_()
    output[free, read] = 0.5 * torch.randn_like(output[free, read])
    hidden = block.img_mlp.net[0].proj.weight
    hidden *= 3  # large enough for text and image to interact in the GELU's curved part
    hidden[:, constant] /= 10
    block.img_mlp.net[2].weight.zero_()
    for layer in (block.attn.to_out[0], block.img_mlp.net[2]):
        layer.bias.zero_()


@torch.no_grad()
def init_as_identity(transformer: Any) -> None:
    """Initialize the weights so that the model's first edit changes nothing.

    Target tokens hold their own latents and copy those of the source token beside them. The output is
    the difference, which is the velocity at sigma 1, up to an offset from the norms and a damping from
    the two heads that read the text into free dimensions. Feed-forward layers output zero. Some
    dimensions hold a constant that dominates the layer norms; without it a token of small amplitude
    would be scaled up to that of a large one. Weights must be on the CPU; draws from torch's default
    generator.
    """
    channels = transformer.img_in.weight.shape[1]
    own, source = slice(0, channels), slice(channels, 2 * channels)
    constant = slice(2 * channels, 2 * channels + _CONSTANTS)
    free = slice(constant.stop, None)
    first = transformer.img_in
    first.weight *= 0.15
    first.weight[own], first.weight[source], first.weight[constant] = torch.eye(channels), 0, 0
    first.bias.zero_()
    first.bias[constant] = _CONSTANT
    for block in transformer.transformer_blocks:
        _init_block(block, constant, free)
    width = len(first.weight)
    other = _CONSTANTS * _CONSTANT**2 + first.weight[free].square().sum()
    first_rms = ((other + channels) / width) ** 0.5  # what the first layer norm divides by
    last_rms = ((other + 2 * channels) / width) ** 0.5
    attn = transformer.transformer_blocks[0].attn
    attn.to_v.weight[own] = 0  # the copy heads hold 64 dimensions: the latents
    attn.to_v.weight[own, own] = torch.eye(channels)
    attn.to_v.bias[own] = 0
    attn.to_out[0].weight[source, own] = torch.eye(channels) * first_rms
    transformer.norm_out.linear.weight.zero_()
    transformer.norm_out.linear.bias.zero_()
    last = transformer.proj_out
    last.weight.zero_()
    last.weight[:, own] = torch.eye(channels) * last_rms
    last.weight[:, source] = -torch.eye(channels) * last_rms
    last.bias.zero_()
