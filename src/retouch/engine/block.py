"""A block of the transformer as functions of tensors, which compile once for all blocks.

Shapes: b = 1, t = text tokens, i = image tokens (of the result, then of each condition image),
h = heads, c = channels of a head, dim = h c.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from retouch.engine.attention import Attend, attend_native
from retouch.engine.linear import Operands, Term, gather_operands, linear, linear_joined
from retouch.engine.rotary import apply_rotary
from retouch.engine.ulysses import Exchange, split_heads

BlockCall = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`run_block`, or its compiled form."""
Heads = tuple[torch.Tensor, torch.Tensor, tuple[Operands, Operands]]
"""Query and key, each (1, t + i, h, c) or as `split_heads` makes it, and what the values are made of."""
_NO_TERMS: Mapping[str, Term] = {}


def project_heads(  # noqa: PLR0913, PLR0917 - compiled as one function of tensors
    block: Any,
    image: torch.Tensor,
    text: torch.Tensor,
    modulation: tuple[torch.Tensor, torch.Tensor],
    angles: torch.Tensor,
    is_condition: torch.Tensor | None,
    num_output_tokens: int | None,
    terms: Mapping[str, Term],
    size: int = 1,
) -> Heads:
    """Return what a block's joint attention is over: text and image tokens, in upstream's order.

    With `num_output_tokens` only that many image tokens are queries. So many processes share the heads.
    """
    attn = block.attn
    shift_and_scale = [select_modulation(part, is_condition) for part in modulation[0][:2]]
    image = modulate(image, block.img_norm1, *shift_and_scale)
    text = modulate(text, block.txt_norm1, *modulation[1][:2])
    count, channels = text.shape[1], attn.inner_dim // attn.heads
    queries, keys, values = zip(
        _gather(attn, text, ("add_q_proj", "add_k_proj", "add_v_proj"), terms),
        _gather(attn, image, ("to_q", "to_k", "to_v"), terms),
        strict=True,
    )
    shape = 1, -1, attn.heads, channels  # (1, token, dim) -> (1, token, h, c)
    key = qk_norm(linear_joined(*keys).view(shape), attn.norm_added_k, attn.norm_k, count)
    if num_output_tokens is None:
        query, query_angles = linear_joined(*queries), angles
    else:
        query = linear(attn.to_q, image[:, :num_output_tokens], terms.get("attn.to_q"))
        query_angles, count = angles[count:][:num_output_tokens], 0
    query = qk_norm(query.view(shape), attn.norm_added_q, attn.norm_q, count)
    return (
        split_heads(apply_rotary(query, query_angles), image.dtype, size),
        split_heads(apply_rotary(key, angles), image.dtype, size),
        values,
    )


def finish_block(
    block: Any,
    image: torch.Tensor,
    text: torch.Tensor,
    attended: torch.Tensor,
    modulation: tuple[torch.Tensor, torch.Tensor],
    is_condition: torch.Tensor | None,
    num_output_tokens: int | None,
    terms: Mapping[str, Term],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a block's streams from those it got and what was `attended`, (1, t + i, h, c)."""
    joint = attended.flatten(2)  # -> (1, t + i, dim)
    count = 0 if num_output_tokens is not None else text.shape[1]  # of queries that are text
    if is_condition is not None:
        is_condition = is_condition[:num_output_tokens]
    gate, *shift_and_scale, last_gate = (
        select_modulation(part, is_condition) for part in modulation[0][2:]
    )
    out = linear(block.attn.to_out[0], joint[:, count:], terms.get("attn.to_out.0"))
    image = torch.addcmul(image[:, :num_output_tokens], gate, out)
    out = feed_forward(
        block.img_mlp, modulate(image, block.img_norm2, *shift_and_scale), terms, "img_mlp"
    )
    image = torch.addcmul(image, last_gate, out)
    if num_output_tokens is None:
        text_parts = modulation[1].unbind()  # 6 x (1, dim)
        out = linear(block.attn.to_add_out, joint[:, :count], terms.get("attn.to_add_out"))
        text = torch.addcmul(text, text_parts[2], out)
        out = feed_forward(
            block.txt_mlp, modulate(text, block.txt_norm2, *text_parts[3:5]), terms, "txt_mlp"
        )
        text = torch.addcmul(text, text_parts[5], out)
    return image, text


def run_block(  # noqa: PLR0913, PLR0917 - compiled as one function of tensors
    block: Any,
    image: torch.Tensor,
    text: torch.Tensor,
    modulation: tuple[torch.Tensor, torch.Tensor],
    angles: torch.Tensor,
    is_condition: torch.Tensor | None,
    num_output_tokens: int | None = None,
    terms: Mapping[str, Term] = _NO_TERMS,
    attend: Attend = attend_native,
    exchange: Exchange | None = None,
    *,
    project: Callable[..., Heads] = project_heads,
    finish: BlockCall = finish_block,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one block over both streams, (1, i, dim) and (1, t, dim).

    `modulation` is (6, row, dim) for the image and for the text. In the last block only the first
    `num_output_tokens` of the image tokens are used: it returns those, and the text unchanged. `terms`
    are those of adapters by the layer's name. With `exchange` the tokens are a share of all. A function
    of tensors, so that it compiles once for all blocks: whole, or as `project` and `finish`. Float16 is
    not clipped as upstream does: an overflow must show in the latents instead of giving a wrong image.
    """
    rest = is_condition, num_output_tokens, terms
    size = exchange.share.size if exchange else 1
    query, key, operands = project(block, image, text, modulation, angles, *rest, size)

    def make_value() -> torch.Tensor:
        value = linear_joined(*operands).view(1, -1, block.attn.heads, key.shape[-1])
        return split_heads(value, value.dtype, size)

    if exchange:
        attended = exchange.attend(attend, query, key, make_value)
    else:
        attended = attend(query, key, make_value())
    return finish(block, image, text, attended, modulation, *rest)


def feed_forward(
    layers: Any, stream: torch.Tensor, terms: Mapping[str, Term], name: str
) -> torch.Tensor:
    """Apply a block's two linear layers with the GELU between them: (1, token, dim)."""
    hidden = linear(layers.net[0].proj, stream, terms.get(f"{name}.net.0.proj"), gelu=True)
    return linear(layers.net[2], hidden, terms.get(f"{name}.net.2"))


def select_modulation(part: torch.Tensor, is_condition: torch.Tensor | None) -> torch.Tensor:
    """Give condition tokens the second row where there are two: (row, dim) -> (1 or i, dim)."""
    return part if is_condition is None else torch.where(is_condition, part[1:], part[:1])


def modulate(
    stream: torch.Tensor, norm: Any, shift: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Normalise the channels, then scale and shift them; `scale` has its 1 added already."""
    normed = functional.layer_norm(stream, stream.shape[-1:], eps=norm.eps)
    return torch.addcmul(shift, normed, scale)


def _gather(
    attn: Any, stream: torch.Tensor, names: Sequence[str], terms: Mapping[str, Term]
) -> list[Operands]:
    layers = [getattr(attn, name) for name in names]
    return gather_operands(stream, layers, [terms.get(f"attn.{name}") for name in names])


def qk_norm(heads: torch.Tensor, text_norm: Any, image_norm: Any, text_tokens: int) -> torch.Tensor:
    """Normalise (1, token, h, c) by RMS, the first tokens with the text's weights, into float32.

    Compiled, norm and rotation of both streams are one pass, and nothing concatenates them later.
    """
    is_text = torch.arange(heads.shape[1], device=heads.device) < text_tokens
    # (token,) -> (token, 1, 1) against (c,): one weight a token and channel
    weight = torch.where(is_text[:, None, None], text_norm.weight, image_norm.weight)
    normed = functional.rms_norm(heads, heads.shape[-1:], eps=image_norm.eps)
    return normed * weight.float()
