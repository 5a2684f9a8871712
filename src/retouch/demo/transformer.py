"""The transformer's forward pass, as a captured training step can have it.

Computes what `QwenImageTransformer2DModel` computes (a test compares them), without complex numbers,
host syncs, and a sigma rounded to the activations' precision.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from retouch.demo.texts import TEXT_TOKENS

HEAD_WIDTH = 32
Rotary = tuple[Tensor, Tensor]
"""The rotary factors as cosine and sine: (2, image tokens, 16) and (2, text tokens, 16)."""


def rotary(transformer: Any, grid: tuple[int, int], device: str) -> Rotary:
    """Give the factors for a source and a target of `grid` (rows, columns) image tokens each."""
    shapes = [[(1, *grid), (1, *grid)]]
    image, text = transformer.pos_embed(
        shapes, max_txt_seq_len=TEXT_TOKENS, device=torch.device(device)
    )
    return torch.stack((image.real, image.imag)), torch.stack((text.real, text.imag))


def _rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Turn pairs of dimensions: (b, s, heads, d)."""
    one, other = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # type: ignore[no-untyped-call]
    cos, sin = factors[:, :, None]
    turned = torch.stack((one * cos - other * sin, one * sin + other * cos), -1)
    return turned.flatten(-2).to(x.dtype)  # (b, s, heads, d/2, 2) -> (b, s, heads, d)


def _heads(linear: Any, norm: Any, x: Tensor) -> Tensor:
    """Project, split and normalise: (b, s, width) -> (b, s, heads, d)."""
    parts: Tensor = linear(x).unflatten(-1, (-1, HEAD_WIDTH))
    if norm is None:
        return parts
    return functional.rms_norm(parts, (HEAD_WIDTH,), norm.weight.to(parts.dtype), norm.eps)


def _modulate(norm: Any, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    """Give the normalised stream, shifted and scaled, and the gate of what is made of it."""
    shift, scale, gate = modulation.unsqueeze(1).chunk(3, -1)
    return norm(x) * (1 + scale) + shift, gate


def _attend(attn: Any, image: Tensor, text: Tensor, turns: Rotary, mask: Tensor) -> Tensor:
    """Attend over words and picture together: (b, t + s, width)."""
    query = (
        _rotate(_heads(attn.add_q_proj, attn.norm_added_q, text), turns[1]),
        _rotate(_heads(attn.to_q, attn.norm_q, image), turns[0]),
    )
    key = (
        _rotate(_heads(attn.add_k_proj, attn.norm_added_k, text), turns[1]),
        _rotate(_heads(attn.to_k, attn.norm_k, image), turns[0]),
    )
    value = (_heads(attn.add_v_proj, None, text), _heads(attn.to_v, None, image))
    # (b, t + s, heads, d) -> (b, heads, t + s, d)
    q, k, v = (torch.cat(parts, 1).transpose(1, 2) for parts in (query, key, value))
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).flatten(2)


def _block(
    block: Any, image: Tensor, text: Tensor, time: Tensor, turns: Rotary, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Run one double-stream block: image (b, s, width), text (b, t, width), mask (b, 1, 1, t + s)."""
    image_first, image_second = block.img_mod(time).chunk(2, -1)
    text_first, text_second = block.txt_mod(time).chunk(2, -1)
    x, image_gate = _modulate(block.img_norm1, image, image_first)
    y, text_gate = _modulate(block.txt_norm1, text, text_first)
    mixed, words = _attend(block.attn, x, y, turns, mask), text.shape[1]
    image = image + image_gate * block.attn.to_out[0](mixed[:, words:])
    text = text + text_gate * block.attn.to_add_out(mixed[:, :words])
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
    turns: Rotary,
) -> Tensor:
    """Predict noise minus target, packed as `noisy`.

    Takes packed latents `noisy` and `source` (b, s, 4 z), noise levels `sigma` (b,) in 0..1 and fp32,
    the text encoder's `states` (b, t, width), the `mask` (b, t) of the words that count, and `rotary`.
    """
    # In fp32 also under autocast: both streams are sums of many small steps.
    image = transformer.img_in(torch.cat((noisy, source), 1)).float()
    text = transformer.txt_in(transformer.txt_norm(states)).float()
    embedder = transformer.time_text_embed
    time = embedder.timestep_embedder(embedder.time_proj(sigma))
    everywhere = mask.new_ones(len(mask), image.shape[1])
    joint = torch.cat((mask, everywhere), 1)[:, None, None]  # (b, t + s) -> (b, 1, 1, t + s)
    for block in transformer.transformer_blocks:
        image, text = _block(block, image, text, time, turns, joint)
    guess: Tensor = transformer.proj_out(transformer.norm_out(image, time))
    return guess[:, : noisy.shape[1]]
