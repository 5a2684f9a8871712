"""The transformer's forward pass: every guidance branch goes through a block before the next block.

The same arithmetic as diffusers' `transformer_qwenimage.py` over the same modules, without masks of
ones, without clipping, without recomputing at each step what is constant within an edit, and with
the modulation read from a table.

Shapes: b = 1, t = text tokens, i = image tokens (of the result, then of each condition image),
h = heads, c = channels of a head, dim = h c.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.nn import functional

from retouch.engine.adapters.terms import NO_TERMS, Terms
from retouch.engine.attention import Attend, attend_native
from retouch.engine.linear import Operands, Term, gather_operands, linear, linear_joined
from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationTable
from retouch.engine.rotary import Grid, apply_rotary, rotary_embedding
from retouch.engine.ulysses import WHOLE, Exchange, Share, split_heads

BlockCall = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`run_block`, or its compiled form."""
Heads = tuple[torch.Tensor, torch.Tensor, tuple[Operands, Operands]]
"""Query and key, each (1, t + i, h, c) or as `split_heads` makes it, and what the values are made of."""
_NO_BLOCK_TERMS: Mapping[str, Term] = {}


@dataclass(frozen=True)
class GuidanceBranch:
    """Embedded text (1, t, dim) of a branch, and cosine and sine of its tokens (t + i, 1, c/2, 2).

    `exchange` is there where they are a share.
    """

    text: torch.Tensor
    angles: torch.Tensor
    exchange: Exchange | None


@dataclass(frozen=True)
class Conditioning:
    """Step-independent inputs of the transformer, of the tokens in its `share`.

    `condition` has the tokens of all condition images (1, token, 4 latent channels). `is_condition`
    (i, 1) marks them among the image tokens, for models that modulate them as at time zero.
    """

    condition: torch.Tensor
    branches: Sequence[GuidanceBranch]
    is_condition: torch.Tensor | None
    terms: Terms = NO_TERMS
    share: Share = WHOLE


class Transformer:
    """The denoiser over `weights`; `run_block` runs each of its blocks."""

    def __init__(self, weights: Weights, run_block: BlockCall) -> None:
        self._weights = weights
        self._module = weights.transformer
        self._run_block = run_block

    def prepare_conditioning(
        self,
        *,
        conditions: Sequence[torch.Tensor],
        texts: Sequence[torch.Tensor],
        grids: Sequence[Grid],
        terms: Terms = NO_TERMS,
        share: Share = WHOLE,
    ) -> Conditioning:
        """Embed the texts (1, t, width), one a branch, and compute the angles of the tokens in `share`.

        `terms` are of the edit's adapters. `grids` are the result's and then those of the `conditions`
        (1, token, 4 latent channels).
        """
        module, weight = self._module, self._module.txt_in.weight
        condition = torch.cat(list(conditions), dim=1).to(weight.device, weight.dtype)
        counts = prod(grids[0]), condition.shape[1]
        is_condition = None
        if module.config.zero_cond_t:
            marks = torch.tensor([False, True]).repeat_interleave(torch.tensor(counts))
            is_condition = share.take(marks[:, None], 0, counts).to(weight.device)  # (i,) -> (i, 1)
        return Conditioning(
            condition=share.take(condition, 1),
            branches=[self._prepare_branch(text, grids, counts, terms, share) for text in texts],
            is_condition=is_condition,
            terms=terms,
            share=share,
        )

    def _prepare_branch(
        self,
        text: torch.Tensor,
        grids: Sequence[Grid],
        image_counts: tuple[int, int],
        terms: Terms,
        share: Share,
    ) -> GuidanceBranch:
        module, weight = self._module, self._module.txt_in.weight
        counts = text.shape[1], *image_counts
        angles = rotary_embedding(module.pos_embed, grids, text.shape[1])
        exchange = None
        if share.size > 1:
            exchange = Exchange(share, share.count(counts), share.count(image_counts[:1]))
        normed = module.txt_norm(share.take(text, 1).to(weight.device, weight.dtype))
        return GuidanceBranch(
            text=linear(module.txt_in, normed, terms.others.get("txt_in")),
            angles=share.take(angles, 0, counts).to(weight.device),
            exchange=exchange,
        )

    def forward(
        self,
        latents: torch.Tensor,
        conditioning: Conditioning,
        modulation: ModulationTable,
        step: int,
    ) -> list[torch.Tensor]:
        """Return each branch's velocity in float32 for `latents` (1, token, 4 channels).

        Of the processes that share the tokens the first has all of both, and the others none.
        """
        module, terms, share = self._module, conditioning.terms, conditioning.share
        exchange = conditioning.branches[0].exchange
        counts = exchange.outputs if exchange else ()
        latents = share.spread(latents, counts)
        tokens = torch.cat([latents.to(conditioning.condition.dtype), conditioning.condition], 1)
        image = linear(module.img_in, tokens, terms.others.get("img_in"))  # (1, i, dim)
        streams = [(image, branch.text) for branch in conditioning.branches]
        shared = [
            {"exchange": branch.exchange} if branch.exchange else {}
            for branch in conditioning.branches
        ]
        last = len(module.transformer_blocks) - 1
        for index, block in enumerate(self._weights.blocks()):
            for at, branch in enumerate(conditioning.branches):
                streams[at] = self._run_block(
                    block,
                    *streams[at],
                    (modulation.image[step, index], modulation.text[step, index]),
                    branch.angles,
                    conditioning.is_condition,
                    latents.shape[1] if index == last else None,
                    terms.of_block(index),
                    **shared[at],
                )
        scale, shift = modulation.last[step]
        norm = module.norm_out.norm
        term = terms.others.get("proj_out")
        return [
            share.gather(
                linear(module.proj_out, _modulate(image, norm, shift, scale), term).float(), counts
            )
            for image, _ in streams
        ]


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
    image = _modulate(image, block.img_norm1, *shift_and_scale)
    text = _modulate(text, block.txt_norm1, *modulation[1][:2])
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
        block.img_mlp, _modulate(image, block.img_norm2, *shift_and_scale), terms, "img_mlp"
    )
    image = torch.addcmul(image, last_gate, out)
    if num_output_tokens is None:
        text_parts = modulation[1].unbind()  # 6 x (1, dim)
        out = linear(block.attn.to_add_out, joint[:, :count], terms.get("attn.to_add_out"))
        text = torch.addcmul(text, text_parts[2], out)
        out = feed_forward(
            block.txt_mlp, _modulate(text, block.txt_norm2, *text_parts[3:5]), terms, "txt_mlp"
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
    terms: Mapping[str, Term] = _NO_BLOCK_TERMS,
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
        value, heads = linear_joined(*operands), block.attn.heads
        value = value.view(1, -1, heads, value.shape[2] // heads)
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


def _modulate(
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
