"""How the transformer begins: as the edit that changes nothing.

Copy heads: in every block two heads start with constant queries and keys, so that the rotary embedding
alone makes each target token look at the source token of its place; block 0 carries its latents along.
"""

import math
from typing import Any

import torch
from torch import Tensor

from retouch.demo.transformer import HEAD_WIDTH

_CONSTANT, _CONSTANTS = 8.0, 8  # its value, and how many dimensions hold it
_SHARP = 3.6
"""Gain of the copy heads' queries and keys, for 0.99 of the attention."""
_COPYING, _READING = slice(0, 2), slice(2, 4)  # heads


def _fix_heads(linear: Any, norm: Any, heads: slice, wanted: Tensor) -> None:
    """Give `heads` the same query or key at every token: (32,), as long as the norm's weights allow."""
    sharp = wanted != 0
    fixed = linear.bias.view(-1, HEAD_WIDTH)[heads]
    linear.weight.view(-1, HEAD_WIDTH, linear.in_features)[heads] = 0
    # After the norm the vector has the length of the gains, so divide them out beforehand.
    fixed[:] = torch.where(sharp, wanted / norm.weight, 0)


def _start_copying(attn: Any) -> None:
    """Let heads 0 and 1 look at the token of the same place, one frame on.

    Of the 16 rotary pairs, 0-3 turn with the frame, 4-9 with the height and 10-15 with the width. The
    first pair of each tells neighbours apart, the second those that lie a full turn away.
    """
    near, far = 17.4**0.5, 10.0**0.5
    query = torch.zeros(HEAD_WIDTH // 2, 2)
    query[[0, 4, 10], 0] = near
    query[[5, 11], 0] = far
    key = query.clone()
    key[0] = near * torch.tensor([math.cos(1.0), -math.sin(1.0)])  # turned back by one frame
    sharp = torch.tensor([0, 1, 8, 9, 10, 11, 20, 21, 22, 23])
    for linear, norm, wanted in ((attn.to_q, attn.norm_q, query), (attn.to_k, attn.norm_k, key)):
        norm.weight[sharp] = _SHARP
        _fix_heads(linear, norm, _COPYING, wanted.flatten())


def _start_reading(attn: Any) -> None:
    """Let heads 2 and 3 look at all words alike and at no picture, by the pairs that hardly turn."""
    slowest = torch.tensor([6, 18, 30])
    vector = torch.zeros(HEAD_WIDTH)
    vector[slowest] = 1.0
    _fix_heads(attn.to_q, attn.norm_q, _READING, vector)
    _fix_heads(attn.to_k, attn.norm_k, _READING, -vector)
    _fix_heads(attn.add_k_proj, attn.norm_added_k, _READING, vector)


def _start_block(block: Any, steady: slice, spare: slice) -> None:
    """Open the gates, set the fixed heads, and let nothing else speak."""
    width = len(block.attn.to_out[0].weight)
    for modulation in (block.img_mod[1], block.txt_mod[1]):
        modulation.weight.zero_()
        modulation.bias.zero_()
        shift_scale_gate = modulation.bias.view(
            2, 3, width
        )  # of the attention, of the feed-forward
        shift_scale_gate[:, 2] = 1
    _start_copying(block.attn)
    _start_reading(block.attn)
    read = slice(_READING.start * HEAD_WIDTH, _READING.stop * HEAD_WIDTH)
    mixing = block.attn.to_out[0].weight.zero_()
    mixing[spare, read] = 0.5 * torch.randn_like(mixing[spare, read])
    hidden = block.img_mlp.net[0].proj.weight
    hidden *= 3  # loud enough for words and picture to meet in the bend of the GELU
    hidden[:, steady] /= 10
    block.img_mlp.net[2].weight.zero_()
    for layer in (block.attn.to_out[0], block.img_mlp.net[2]):
        layer.bias.zero_()


@torch.no_grad()
def start_as_identity(transformer: Any) -> None:
    """Set the weights such that the model begins as the edit that changes nothing.

    Target tokens hold their own latents, copy those of the source beside them, and the output is the
    difference: the velocity at sigma 1, but for what norms leave of it, an offset and, as two heads
    read the words into spare dimensions, a damping. No feed-forward layer says anything yet. A
    constant in some dimensions rules the layer norms: without it they make a faint token as loud as
    a strong one. Weights on the CPU; draws from torch's default generator.
    """
    channels = transformer.img_in.weight.shape[1]
    own, source = slice(0, channels), slice(channels, 2 * channels)
    steady = slice(2 * channels, 2 * channels + _CONSTANTS)
    spare = slice(steady.stop, None)
    first = transformer.img_in
    first.weight *= 0.15
    first.weight[own], first.weight[source], first.weight[steady] = torch.eye(channels), 0, 0
    first.bias.zero_()
    first.bias[steady] = _CONSTANT
    for block in transformer.transformer_blocks:
        _start_block(block, steady, spare)
    width = len(first.weight)
    noise = _CONSTANTS * _CONSTANT**2 + first.weight[spare].square().sum()
    before = ((noise + channels) / width) ** 0.5  # what the first layer norm divides by
    after = ((noise + 2 * channels) / width) ** 0.5  # and the last
    attn = transformer.transformer_blocks[
        0
    ].attn  # the copying heads hold 64 dimensions: the latents
    attn.to_v.weight[own] = 0
    attn.to_v.weight[own, own] = torch.eye(channels)
    attn.to_v.bias[own] = 0
    attn.to_out[0].weight[source, own] = torch.eye(channels) * before
    transformer.norm_out.linear.weight.zero_()
    transformer.norm_out.linear.bias.zero_()
    last = transformer.proj_out
    last.weight.zero_()
    last.weight[:, own] = torch.eye(channels) * after
    last.weight[:, source] = -torch.eye(channels) * after
    last.bias.zero_()
