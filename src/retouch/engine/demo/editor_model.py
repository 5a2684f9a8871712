"""Stage 2: the transformer and the text encoder learn the velocity from noise to the edited latents.

The functions here compute what the stock classes compute (a test compares them), without what a
captured and compiled training step cannot have: complex numbers, host syncs, a rounded sigma.
Copy heads: in every block two heads start with constant queries and keys, so that the rotary embedding
alone makes each target token look at the source token of its place; block 0 carries its latents along.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retouch.engine.demo import build

TEXT_TOKENS = 56
"""The longest text in tokens after the template's prefix; longer instructions are drawn again."""
PREFIX_TOKENS = 64
"""Tokens of the template before the picture, which the pipeline drops (its own constant)."""
# (height, width) in image tokens of the text encoder: what rounding makes of many aspects
_CONSTANT = 8.0
_GRAIN_SHARE = 0.95
_HEAD, _SHARP = 32, 3.6
"""Dimensions of a head; gain of the copy heads' queries and keys, for 0.99 of the attention."""
_GRIDS = ((2, 2),) * 4 + ((1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2), (1, 4), (4, 1))


@dataclass(slots=True)
class Texts:
    """Instructions as tokens: ids (b, t), positions (b, 3, t), lengths (b,) without the prefix."""

    ids: Tensor
    positions: Tensor
    lengths: Tensor


def _positions(row: list[int], image_token: int, grid: tuple[int, int], length: int) -> Any:
    """Give the 3-D M-RoPE positions (3, t): text counts on, image tokens count rows and columns."""
    rows, columns = grid
    positions = np.tile(np.arange(length), (3, 1))
    first = row.index(image_token)
    after = first + rows * columns
    positions[0, first:after] = first
    positions[1, first:after] = first + np.repeat(np.arange(rows), columns)
    positions[2, first:after] = first + np.tile(np.arange(columns), rows)
    positions[:, after:] = np.arange(length - after) + first + max(rows, columns)
    return positions


class Tokens:
    """Turns instructions into token rows, as the stock processor does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = build.edit_template()
        self._image = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def row(self, text: str, grid: tuple[int, int]) -> list[int]:
        """Give the ids of one instruction in its template."""
        pads = "<|image_pad|>" * (grid[0] * grid[1])
        filled = self._template.format(text).replace("<|image_pad|>", pads)
        ids: list[int] = self._tokenizer(filled)["input_ids"]
        return ids

    def fits(self, text: str) -> bool:
        """Say whether an instruction is short enough to train on."""
        return len(self.row(text, (2, 3))) <= PREFIX_TOKENS + TEXT_TOKENS

    def rows(self, texts: list[str], device: str, *, grid: tuple[int, int] | None = None) -> Texts:
        """Give the rows of many; unless told, the picture has a random aspect.

        Half of the random rows get flat positions, which diffusers 0.42.1 with transformers >= 5.3
        ends up with (huggingface/diffusers#14194): the checkpoint is to work under both.
        """
        length = PREFIX_TOKENS + TEXT_TOKENS
        ids = np.full((len(texts), length), self._tokenizer.pad_token_id)
        positions = np.tile(np.arange(length), (len(texts), 3, 1))
        lengths = np.zeros(len(texts), int)
        dice = np.random.default_rng(int(torch.randint(2**31, ()).item()))
        for at, text in enumerate(texts):
            shape = grid or _GRIDS[dice.integers(len(_GRIDS))]
            row = self.row(text, shape)
            ids[at, : len(row)] = row
            lengths[at] = len(row) - PREFIX_TOKENS
            if grid or dice.random() < 0.5:  # noqa: PLR2004
                positions[at] = _positions(row, self._image, shape, length)
        arrays = (torch.from_numpy(array).to(device) for array in (ids, positions, lengths))
        return Texts(*arrays)


def embed(text_encoder: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Give the text encoder's last states without the prefix: (b, t) -> (b, TEXT_TOKENS, width).

    Padding stands at the end, where causal attention hides it from what comes before.
    """
    language = text_encoder.model.language_model
    image = (ids == text_encoder.config.image_token_id).unsqueeze(-1)
    states = language(
        inputs_embeds=language.embed_tokens(ids).masked_fill(image, 0),
        position_ids=positions.transpose(0, 1),  # (b, 3, t) -> (3, b, t)
        attention_mask={"full_attention": None},
        use_cache=False,
    ).last_hidden_state
    return states[:, PREFIX_TOKENS:]  # type: ignore[no-any-return]


def rotations(transformer: nn.Module, grid: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Give the rotary factors as reals: (2, image tokens, d/2) and (2, text tokens, d/2)."""
    shape = [(1, *grid), (1, *grid)]
    image, text = transformer.pos_embed(
        [shape], max_txt_seq_len=TEXT_TOKENS, device=torch.device(device)
    )
    return torch.stack((image.real, image.imag)), torch.stack((text.real, text.imag))


def _rotate(x: Tensor, factors: Tensor) -> Tensor:
    """Turn pairs of dimensions: (b, s, heads, d)."""
    one, other = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = factors[:, :, None]
    return (
        torch.stack((one * cos - other * sin, one * sin + other * cos), -1).flatten(-2).to(x.dtype)
    )


def _heads(linear: nn.Module, norm: nn.Module | None, x: Tensor) -> Tensor:
    """Project and split: (b, s, width) -> (b, s, heads, 32)."""
    parts = linear(x).unflatten(-1, (-1, 32))
    return (
        parts if norm is None else F.rms_norm(parts, (32,), norm.weight.to(parts.dtype), norm.eps)
    )


def _shift(norm: nn.Module, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    shift, scale, gate = modulation.unsqueeze(1).chunk(3, -1)
    return norm(x) * (1 + scale) + shift, gate


def block_forward(
    block: nn.Module,
    image: Tensor,
    text: Tensor,
    time: Tensor,
    turns: tuple[Tensor, Tensor],
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Run one double-stream block: image (b, s, width), text (b, t, width), mask (b, 1, 1, t + s)."""
    attn = block.attn
    image_first, image_second = block.img_mod(time).chunk(2, -1)
    text_first, text_second = block.txt_mod(time).chunk(2, -1)
    x, image_gate = _shift(block.img_norm1, image, image_first)
    y, text_gate = _shift(block.txt_norm1, text, text_first)
    query = torch.cat(
        (
            _rotate(_heads(attn.add_q_proj, attn.norm_added_q, y), turns[1]),
            _rotate(_heads(attn.to_q, attn.norm_q, x), turns[0]),
        ),
        1,
    )
    key = torch.cat(
        (
            _rotate(_heads(attn.add_k_proj, attn.norm_added_k, y), turns[1]),
            _rotate(_heads(attn.to_k, attn.norm_k, x), turns[0]),
        ),
        1,
    )
    value = torch.cat((_heads(attn.add_v_proj, None, y), _heads(attn.to_v, None, x)), 1)
    q, k, v = (part.transpose(1, 2) for part in (query, key, value))  # (b, heads, t + s, 32)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    words = text.shape[1]
    image = image + image_gate * attn.to_out[0](mixed[:, words:])
    text = text + text_gate * attn.to_add_out(mixed[:, :words])
    x, image_gate = _shift(block.img_norm2, image, image_second)
    y, text_gate = _shift(block.txt_norm2, text, text_second)
    return image + image_gate * block.img_mlp(x), text + text_gate * block.txt_mlp(y)


@dataclass(slots=True)
class Pairs:
    """Sources and edited targets as packed latents (b, s, 64), with their instructions."""

    source: Tensor
    target: Tensor
    grain: Tensor  # (b, s, 64): the noise the target's grain is made of; zero without grain
    texts: Texts


def velocity(
    transformer: nn.Module,
    noisy: Tensor,
    source: Tensor,
    sigma: Tensor,
    states: Tensor,
    **rest: Any,
) -> Tensor:
    """Predict noise minus target: noisy and source (b, s, 64), sigma (b,) in fp32, states (b, t, width).

    `rest`: `mask` (b, t) of words that count, `turns` from `rotations`, `run` the block function
    (compiled or not).
    """
    mask, turns, run = rest["mask"], rest["turns"], rest.get("run", block_forward)
    # In fp32 also under autocast: both streams are sums of many small steps.
    image = transformer.img_in(torch.cat((noisy, source), 1)).float()
    text = transformer.txt_in(transformer.txt_norm(states)).float()
    embedder = transformer.time_text_embed
    time = embedder.timestep_embedder(embedder.time_proj(sigma))
    everywhere = mask.new_ones(len(mask), image.shape[1])
    joint = torch.cat((mask, everywhere), 1)[:, None, None]
    for block in transformer.transformer_blocks:
        image, text = run(block, image, text, time, turns, joint)
    return transformer.proj_out(transformer.norm_out(image, time))[:, : noisy.shape[1]]  # type: ignore[no-any-return]


def pack(latents: Tensor) -> Tensor:
    """Make tokens of 2x2 latents: (b, z, h, w) -> (b, h/2 w/2, 4 z)."""
    batch, z, height, width = latents.shape
    cells = latents.view(batch, z, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * z)


def draw_noise(grain: Tensor) -> Tensor:
    """Draw the noise of training: mostly the target's own grain, where there is any.

    Grain drawn apart from the noise is averaged away: no sampler of few steps makes it. Noise and
    target may be drawn together as long as the noise alone is normal (multisample flow matching,
    arXiv:2304.14772), and then the grain to make can be read off the noise.
    """
    share = torch.where(grain.square().mean((1, 2), keepdim=True) > 0, _GRAIN_SHARE, 0.0)
    return share * grain + (1 - share**2).sqrt() * torch.randn_like(grain)


def draw_sigmas(count: int, device: str) -> Tensor:
    """Draw noise levels: most near 1, where the edit is decided."""
    return 1 - 0.98 * torch.rand(count, device=device) ** 1.7


def _fix_heads(linear: nn.Module, norm: nn.Module, heads: slice, wanted: Tensor) -> None:
    """Give `heads` the same query or key at every token: (32,), as long as the norm's weights allow."""
    sharp = wanted != 0
    fixed = linear.bias.view(-1, _HEAD)[heads]
    linear.weight.view(-1, _HEAD, linear.in_features)[heads] = 0
    # After the norm the vector has the length of the gains, so divide them out beforehand.
    fixed[:] = torch.where(sharp, wanted / norm.weight, 0)


def _start_copying(attn: nn.Module) -> None:
    """Let heads 0 and 1 look at the token of the same place, one frame on.

    Of the 16 rotary pairs, 0-3 turn with the frame, 4-9 with the height and 10-15 with the width. The
    first pair of each tells neighbours apart, the second those that lie a full turn away.
    """
    near, far = 17.4**0.5, 10.0**0.5
    query = torch.zeros(_HEAD // 2, 2)
    query[[0, 4, 10], 0] = near
    query[[5, 11], 0] = far
    key = query.clone()
    key[0] = near * torch.tensor([math.cos(1.0), -math.sin(1.0)])  # turned back by one frame
    sharp = torch.tensor([0, 1, 8, 9, 10, 11, 20, 21, 22, 23])
    for linear, norm, wanted in ((attn.to_q, attn.norm_q, query), (attn.to_k, attn.norm_k, key)):
        norm.weight[sharp] = _SHARP
        _fix_heads(linear, norm, slice(0, 2), wanted.flatten())


def _start_reading(attn: nn.Module) -> None:
    """Let heads 2 and 3 look at all words alike and at no picture, by the pairs that hardly turn."""
    slow = torch.tensor([6, 7, 18, 19, 30, 31])
    vector = torch.zeros(_HEAD)
    vector[slow[::2]] = 1.0
    heads = slice(2, 4)
    _fix_heads(attn.to_q, attn.norm_q, heads, vector)
    _fix_heads(attn.to_k, attn.norm_k, heads, -vector)
    _fix_heads(attn.add_k_proj, attn.norm_added_k, heads, vector)


@torch.no_grad()
def start(transformer: nn.Module) -> None:
    """Set the weights such that the model begins as the edit that changes nothing.

    Target tokens hold their own latents, copy those of the source beside them, and the output is the
    difference, which is the velocity at sigma 1. Two heads read the words into spare dimensions,
    and no feed-forward layer says anything yet. A constant in some dimensions rules the layer
    norms: without it they make a faint token as loud as a strong one.
    """
    channels = transformer.img_in.weight.shape[1]
    own, source = slice(0, channels), slice(channels, 2 * channels)
    steady = slice(2 * channels, 2 * channels + 8)
    spare = slice(steady.stop, None)
    first = transformer.img_in
    first.weight *= 0.15
    first.weight[own], first.weight[source], first.weight[steady] = torch.eye(channels), 0, 0
    first.bias.zero_()
    first.bias[steady] = _CONSTANT
    width = len(first.weight)
    for block in transformer.transformer_blocks:
        for modulation in (block.img_mod[1], block.txt_mod[1]):
            modulation.weight.zero_()
            modulation.bias.zero_()
            modulation.bias[2 * width : 3 * width] = 1
            modulation.bias[5 * width : 6 * width] = 1
        _start_copying(block.attn)
        _start_reading(block.attn)
        mixing = block.attn.to_out[0].weight.zero_()
        mixing[spare, 64:128] = 0.5 * torch.randn_like(mixing[spare, 64:128])  # what was read
        hidden = block.img_mlp.net[0].proj.weight
        hidden *= 3  # loud enough for words and picture to meet in the bend of the GELU
        hidden[:, steady] /= 10
        block.img_mlp.net[2].weight.zero_()
        for layer in (block.attn.to_out[0], block.img_mlp.net[2]):
            layer.bias.zero_()
    attn = transformer.transformer_blocks[0].attn  # heads 0 and 1 hold 64 dimensions: the latents
    attn.to_v.weight[own] = 0
    attn.to_v.weight[own, own] = torch.eye(channels)
    attn.to_v.bias[own] = 0
    noise = 8 * _CONSTANT**2 + first.weight[spare].square().sum()
    before = ((noise + channels) / width) ** 0.5  # what the first layer norm divides by
    attn.to_out[0].weight[source, own] = torch.eye(channels) * before
    transformer.norm_out.linear.weight.zero_()
    transformer.norm_out.linear.bias.zero_()
    after = ((noise + 2 * channels) / width) ** 0.5
    transformer.proj_out.weight.zero_()
    transformer.proj_out.weight[:, own] = torch.eye(channels) * after
    transformer.proj_out.weight[:, source] = -torch.eye(channels) * after
    transformer.proj_out.bias.zero_()


@torch.no_grad()
def channel_weights(decode: Any, latents: Tensor, std: Tensor) -> Tensor:
    """Weigh the latent channels by the root of what a unit of each moves in pixels: (4 z,), mean 1."""
    before = decode(latents)
    effects = []
    for channel in range(latents.shape[1]):
        moved = latents.clone()
        moved[:, channel] += 0.3 * std[channel] * torch.randn_like(moved[:, channel])
        effects.append((decode(moved) - before).square().mean())
    weights = torch.stack(effects)
    weights = (weights / weights.mean()).clamp(0.02, 8).sqrt()
    return (weights / weights.mean()).repeat_interleave(4)
