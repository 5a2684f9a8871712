"""The transformer's forward pass in a form that a training step can capture.

Computes what `QwenImageTransformer2DModel` computes (a test compares them), without complex numbers or
host syncs, and without rounding sigma to the precision of the activations.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from retouch.demo.prompts import PROMPT_TOKENS

HEAD_WIDTH = 32
Rotary = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary embedding: (2, image tokens, 16) and (2, text tokens, 16)."""


def rotary_embedding(transformer: Any, grid: tuple[int, int], device: str) -> Rotary:
    """Return the rotary embedding of a target and a source of `grid` (rows, columns) tokens each."""
    shapes = [[(1, *grid), (1, *grid)]]
    image, text = transformer.pos_embed(
        shapes, max_txt_seq_len=PROMPT_TOKENS, device=torch.device(device)
    )
    return torch.stack((image.real, image.imag)), torch.stack((text.real, text.imag))


def _apply_rotary(x: Tensor, factors: Tensor) -> Tensor:
    """Rotate pairs of dimensions: (b, s, heads, d)."""
    one, other = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
    cos, sin = factors[:, :, None]
    rotated = torch.stack((one * cos - other * sin, one * sin + other * cos), -1)
    return rotated.flatten(-2).to(x.dtype)  # (b, s, heads, d/2, 2) -> (b, s, heads, d)


def _project(linear: Any, norm: Any, x: Tensor) -> Tensor:
    """Project, split into heads and normalize: (b, s, width) -> (b, s, heads, d)."""
    heads: Tensor = linear(x).unflatten(-1, (-1, HEAD_WIDTH))
    if norm is None:
        return heads
    return functional.rms_norm(heads, (HEAD_WIDTH,), norm.weight.to(heads.dtype), norm.eps)


def _modulate(norm: Any, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    """Apply AdaLN: return the normalized, shifted and scaled stream, and the gate."""
    shift, scale, gate = modulation.unsqueeze(1).chunk(3, -1)  # (b, 3 width) -> 3 x (b, 1, width)
    return norm(x) * (1 + scale) + shift, gate


def _attend(attn: Any, image: Tensor, text: Tensor, rotary: Rotary, mask: Tensor) -> Tensor:
    """Joint attention over text and image: (b, t + s, width)."""
    query = (
        _apply_rotary(_project(attn.add_q_proj, attn.norm_added_q, text), rotary[1]),
        _apply_rotary(_project(attn.to_q, attn.norm_q, image), rotary[0]),
    )
    key = (
        _apply_rotary(_project(attn.add_k_proj, attn.norm_added_k, text), rotary[1]),
        _apply_rotary(_project(attn.to_k, attn.norm_k, image), rotary[0]),
    )
    value = (_project(attn.add_v_proj, None, text), _project(attn.to_v, None, image))
    # (b, t + s, heads, d) -> (b, heads, t + s, d)
    q, k, v = (torch.cat(streams, 1).transpose(1, 2) for streams in (query, key, value))
    attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)  # (b, heads, t + s, d) -> (b, t + s, width)


def _run_block(
    block: Any, image: Tensor, text: Tensor, time: Tensor, rotary: Rotary, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Run one double-stream block: image (b, s, width), text (b, t, width), mask (b, 1, 1, t + s)."""
    image_first, image_second = block.img_mod(time).chunk(2, -1)
    text_first, text_second = block.txt_mod(time).chunk(2, -1)
    x, image_gate = _modulate(block.img_norm1, image, image_first)
    y, text_gate = _modulate(block.txt_norm1, text, text_first)
    attended, text_tokens = _attend(block.attn, x, y, rotary, mask), text.shape[1]
    image = image + image_gate * block.attn.to_out[0](attended[:, text_tokens:])
    text = text + text_gate * block.attn.to_add_out(attended[:, :text_tokens])
    x, image_gate = _modulate(block.img_norm2, image, image_second)
    y, text_gate = _modulate(block.txt_norm2, text, text_second)
    return image + image_gate * block.img_mlp(x), text + text_gate * block.txt_mlp(y)


def velocity(
    transformer: Any,
    noisy: Tensor,
    source: Tensor,
    sigma: Tensor,
    states: Tensor,
    *,
    mask: Tensor,
    rotary: Rotary,
) -> Tensor:
    """Predict noise minus target, in the shape of `noisy`.

    Takes packed latents `noisy` and `source` (b, s, 4 z), noise levels `sigma` (b,) in 0..1 and fp32,
    the text encoder's `states` (b, t, width), the `mask` (b, t) of tokens that are not padding, and
    the `rotary` embedding.
    """
    # fp32 also under autocast: both residual streams are sums of many small terms.
    image = transformer.img_in(torch.cat((noisy, source), 1)).float()  # (b, 2 s, width)
    text = transformer.txt_in(transformer.txt_norm(states)).float()
    embedder = transformer.time_text_embed
    time = embedder.timestep_embedder(embedder.time_proj(sigma))
    image_mask = mask.new_ones(len(mask), image.shape[1])
    joint = torch.cat((mask, image_mask), 1)[:, None, None]  # (b, t + 2 s) -> (b, 1, 1, t + 2 s)
    for block in transformer.transformer_blocks:
        image, text = _run_block(block, image, text, time, rotary, joint)
    predicted: Tensor = transformer.proj_out(transformer.norm_out(image, time))
    return predicted[:, : noisy.shape[1]]
