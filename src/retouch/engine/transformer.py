"""The transformer's forward pass: every guidance branch goes through a block before the next block.

The same arithmetic as diffusers' `transformer_qwenimage.py` over the same modules, without masks of
ones, without clipping, without recomputing at each step what is constant within an edit, and with
the modulation read from a table.

Shapes: b = 1, t = text tokens, i = image tokens (of the result, then of each condition image),
h = heads, c = channels of a head, dim = h c.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from retouch.engine.adapters.terms import NO_TERMS, Terms
from retouch.engine.attention import Attend, attend_native
from retouch.engine.linear import Operands, Term, gather_operands, linear, linear_joined
from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationTable

Grid = tuple[int, int]
"""Rows and columns of an image's tokens."""
BlockCall = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`run_block`, or its compiled form."""
_NO_BLOCK_TERMS: Mapping[str, Term] = {}


@dataclass(frozen=True)
class GuidanceBranch:
    """Embedded text (1, t, dim) of a branch, and cosine and sine of its tokens (t + i, 1, c/2, 2)."""

    text: torch.Tensor
    angles: torch.Tensor


@dataclass(frozen=True)
class Conditioning:
    """Step-independent inputs of the transformer.

    `condition` has the tokens of all condition images (1, token, 4 latent channels). `is_condition`
    (i, 1) marks them among the image tokens, for models that modulate them as at time zero.
    """

    condition: torch.Tensor
    branches: Sequence[GuidanceBranch]
    is_condition: torch.Tensor | None
    terms: Terms = NO_TERMS


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
    ) -> Conditioning:
        """Embed the texts (1, t, width), one a branch, and compute the angles of all tokens.

        `terms` are of the edit's adapters. `grids` are the result's and then those of the `conditions` (1, token, 4 latent channels).
        """
        module, weight = self._module, self._module.txt_in.weight
        branches = [
            GuidanceBranch(
                text=linear(
                    module.txt_in,
                    module.txt_norm(text.to(weight.device, weight.dtype)),
                    terms.others.get("txt_in"),
                ),
                angles=rotary_embedding(module.pos_embed, grids, text.shape[1]).to(weight.device),
            )
            for text in texts
        ]
        is_condition = None
        if module.config.zero_cond_t:
            (rows, columns), *rest = grids
            counts = torch.tensor([rows * columns, sum(r * c for r, c in rest)])
            marks = torch.tensor([False, True]).repeat_interleave(counts)
            is_condition = marks[:, None].to(weight.device)  # (i,) -> (i, 1)
        condition = torch.cat(list(conditions), dim=1).to(weight.device, weight.dtype)
        return Conditioning(condition, branches, is_condition, terms)

    def forward(
        self,
        latents: torch.Tensor,
        conditioning: Conditioning,
        modulation: ModulationTable,
        step: int,
    ) -> list[torch.Tensor]:
        """Return each branch's velocity in float32 for `latents`, both (1, token, 4 channels)."""
        module, terms = self._module, conditioning.terms
        tokens = torch.cat([latents.to(conditioning.condition.dtype), conditioning.condition], 1)
        image = linear(module.img_in, tokens, terms.others.get("img_in"))  # (1, i, dim)
        streams = [(image, branch.text) for branch in conditioning.branches]
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
                )
        scale, shift = modulation.last[step]
        norm = module.norm_out.norm
        term = terms.others.get("proj_out")
        return [
            linear(module.proj_out, _modulate(image, norm, shift, scale), term).float()
            for image, _ in streams
        ]


def rotary_embedding(pos_embed: Any, grids: Sequence[Grid], text_tokens: int) -> torch.Tensor:
    """Return cosine and sine for text and images: (t + i, 1, c/2, 2), where the model's table is.

    As `QwenEmbedRope` of diffusers (transformer_qwenimage.py): rows and columns are counted from the
    middle of each image. Not called, because its cache imports the compiler at the first call.
    """
    channels = [count // 2 for count in pos_embed.axes_dim]  # complex, of image, row and column
    positive, negative = (
        table.split(channels, dim=1) for table in (pos_embed.pos_freqs, pos_embed.neg_freqs)
    )

    def centred(axis: int, count: int) -> torch.Tensor:
        before = count - count // 2
        return torch.cat([negative[axis][-before:], positive[axis][: count // 2]])

    images = [
        torch.cat(
            [
                positive[0][number].expand(rows * columns, -1),
                centred(1, rows).repeat_interleave(columns, 0),
                centred(2, columns).repeat(rows, 1),
            ],
            dim=1,
        )
        for number, (rows, columns) in enumerate(grids)
    ]
    first = max(max(grid) // 2 for grid in grids)
    text = pos_embed.pos_freqs[first : first + text_tokens]
    return torch.view_as_real(torch.cat([text, *images]))[:, None]  # (t + i, c/2) complex


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one block over both streams, (1, i, dim) and (1, t, dim).

    `modulation` is (6, row, dim) for the image and for the text. In the last block only the first
    `num_output_tokens` of the image tokens are used: it returns those, and the text unchanged. `terms`
    are those of adapters by the layer's name. A function of tensors, so that it compiles once for all blocks. Float16 is not clipped as upstream
    does: an overflow must show in the latents instead of giving a wrong image.
    """
    image_parts, text_parts = (parts.unbind() for parts in modulation)  # each 6 x (row, dim)
    before = [select_modulation(part, is_condition) for part in image_parts[:2]]
    image_out, text_out = _attend(
        block.attn,
        _modulate(image, block.img_norm1, *before),
        _modulate(text, block.txt_norm1, *text_parts[:2]),
        angles,
        num_output_tokens,
        terms,
        attend,
    )
    if is_condition is not None:
        is_condition = is_condition[:num_output_tokens]
    gate, *shift_and_scale, last_gate = (
        select_modulation(part, is_condition) for part in image_parts[2:]
    )
    image = torch.addcmul(image[:, :num_output_tokens], gate, image_out)
    image_out = feed_forward(
        block.img_mlp, _modulate(image, block.img_norm2, *shift_and_scale), terms, "img_mlp"
    )
    image = torch.addcmul(image, last_gate, image_out)
    if num_output_tokens is None:
        text = torch.addcmul(text, text_parts[2], text_out)
        text_out = feed_forward(
            block.txt_mlp, _modulate(text, block.txt_norm2, *text_parts[3:5]), terms, "txt_mlp"
        )
        text = torch.addcmul(text, text_parts[5], text_out)
    return image, text


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


def _attend(
    attn: Any,
    image: torch.Tensor,
    text: torch.Tensor,
    angles: torch.Tensor,
    num_output_tokens: int | None,
    terms: Mapping[str, Term],
    attend: Attend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Joint attention over text and image tokens, in upstream's order: (1, i, dim), (1, t, dim).

    With `num_output_tokens` only that many image tokens are queries, and the text's output is empty.
    """
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
    joint = attend(
        apply_rotary(query, query_angles).to(image.dtype),
        apply_rotary(key, angles).to(image.dtype),
        linear_joined(*values).view(shape),
    ).flatten(2)  # (1, t + i, h, c) -> (1, t + i, dim)
    return (
        linear(attn.to_out[0], joint[:, count:], terms.get("attn.to_out.0")),
        linear(attn.to_add_out, joint[:, :count], terms.get("attn.to_add_out")),
    )


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


def apply_rotary(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of channels of (1, token, h, c) by its token's angle, in float32."""
    pairs = heads.view(*heads.shape[:-1], -1, 2)  # (1, token, h, c) -> (1, token, h, c/2, 2)
    if torch.compiler.is_compiling():  # the compiler cannot fuse complex numbers
        cosine, sine = angles[..., :1], angles[..., 1:]
        turned = pairs * cosine + pairs.flip(-1) * torch.cat([-sine, sine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(angles))
    return turned.flatten(-2)  # (1, token, h, c/2, 2) -> (1, token, h, c)
