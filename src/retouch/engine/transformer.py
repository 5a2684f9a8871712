"""The transformer's forward pass: every guidance branch through a block before the next block is touched.

The same sums as diffusers' `transformer_qwenimage.py` over the same modules, without what it spends on
masks of ones, on clipping, on working out again at each step what an edit does not change, and on the
modulation, which comes in tabulated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch.nn import functional

from retouch.engine.memory.weights import Weights
from retouch.engine.modulation import ModulationTable

Grid = tuple[int, int]
"""Rows and columns of an image's tokens."""
BlockCall = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""`run_block`, or what a compiler makes of it."""


@dataclass(frozen=True)
class GuidanceBranch:
    """What one guidance branch has of its own: its embedded text, and the angles of all its tokens."""

    text: torch.Tensor
    angles: torch.Tensor


@dataclass(frozen=True)
class Conditioning:
    """What all steps of an edit see: the condition's tokens and the branches over them."""

    condition: torch.Tensor
    branches: Sequence[GuidanceBranch]
    is_condition: torch.Tensor | None


def prepare_conditioning(
    transformer: Any,
    *,
    condition: torch.Tensor,
    texts: Sequence[torch.Tensor],
    grids: tuple[Grid, Grid],
) -> Conditioning:
    """Embed what the steps share: `texts` a branch, and `grids` of the result and the condition."""
    weight = transformer.txt_in.weight
    branches = [
        GuidanceBranch(
            text=transformer.txt_in(transformer.txt_norm(text.to(weight.device, weight.dtype))),
            angles=rotary_embedding(transformer.pos_embed, grids, text.shape[1]).to(weight.device),
        )
        for text in texts
    ]
    (rows, columns), (condition_rows, condition_columns) = grids
    is_condition = None
    if transformer.config.zero_cond_t:
        sizes = torch.tensor([rows * columns, condition_rows * condition_columns])
        marks = torch.tensor([False, True]).repeat_interleave(sizes)
        is_condition = marks[:, None].to(weight.device)
    return Conditioning(condition.to(weight.device, weight.dtype), branches, is_condition)


def rotary_embedding(pos_embed: Any, grids: tuple[Grid, Grid], text_tokens: int) -> torch.Tensor:
    """Return cosine and sine for text and images: (token, 1, half of a head, 2).

    Where the model's own table is: asked for another device it keeps a copy of each size there.
    """
    sizes = [(1, *grid) for grid in grids]
    device = pos_embed.pos_freqs.device
    images, text = pos_embed([sizes], max_txt_seq_len=text_tokens, device=device)
    return torch.view_as_real(torch.cat([text, images]))[:, None]


def forward(
    weights: Weights,
    transformer: Any,
    latents: torch.Tensor,
    sight: Conditioning,
    moment: tuple[ModulationTable, int],
    *,
    run_block: BlockCall,
) -> list[torch.Tensor]:
    """Return each branch's velocity in float32 for `latents` at the step that `moment` names."""
    table, step = moment
    tokens = torch.cat([latents.to(sight.condition.dtype), sight.condition], dim=1)
    image = transformer.img_in(tokens)
    streams = [(image, branch.text) for branch in sight.branches]
    last = len(transformer.transformer_blocks) - 1
    for index, block in enumerate(weights.blocks()):
        image_table, text_table = table.image[step, index], table.text[step, index]
        wanted = latents.shape[1] if index == last else None
        for at, branch in enumerate(sight.branches):
            streams[at] = run_block(
                block,
                *streams[at],
                image_table,
                text_table,
                branch.angles,
                sight.is_condition,
                wanted,
            )
    scale, shift = table.last[step]
    norm = transformer.norm_out.norm
    return [
        transformer.proj_out(_modulate(image, norm, shift, scale)).float() for image, _ in streams
    ]


def classifier_free_guidance(velocities: Sequence[torch.Tensor], scale: float) -> torch.Tensor:
    """Join the branches (with the prompt, and without), at the length of the one with the prompt."""
    if len(velocities) == 1:
        return velocities[0]
    wanted, unwanted = velocities
    joined = unwanted + scale * (wanted - unwanted)
    length, joined_length = (
        torch.linalg.vector_norm(velocity, dim=-1, keepdim=True) for velocity in (wanted, joined)
    )
    guided: torch.Tensor = joined * (length / joined_length)
    return guided


def run_block(
    block: Any,
    image: torch.Tensor,
    text: torch.Tensor,
    image_table: torch.Tensor,
    text_table: torch.Tensor,
    angles: torch.Tensor,
    is_condition: torch.Tensor | None,
    wanted: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one block over both streams, (1, token, dim); of the tables each row is (row, dim).

    For the last block `wanted` is how many of the image's tokens, the first, are used: it returns
    those alone, and the text as it came. A function of tensors, so that it compiles once for all
    blocks. Float16 is not clipped as upstream does it: an overflow shall be seen in the latents, and
    not become a wrong picture.
    """
    image_rows = image_table.unbind()
    text_rows = text_table.unbind()
    before = [select_modulation(row, is_condition) for row in image_rows[:2]]
    image_out, text_out = _attend(
        block.attn,
        _modulate(image, block.img_norm1, *before),
        _modulate(text, block.txt_norm1, *text_rows[:2]),
        angles,
        wanted,
    )
    if is_condition is not None:
        is_condition = is_condition[:wanted]
    gate, *shift_and_scale, last_gate = (
        select_modulation(row, is_condition) for row in image_rows[2:]
    )
    image = torch.addcmul(image[:, :wanted], gate, image_out)
    image_out = feed_forward(block.img_mlp, _modulate(image, block.img_norm2, *shift_and_scale))
    image = torch.addcmul(image, last_gate, image_out)
    if wanted is None:
        text = torch.addcmul(text, text_rows[2], text_out)
        text_out = feed_forward(block.txt_mlp, _modulate(text, block.txt_norm2, *text_rows[3:5]))
        text = torch.addcmul(text, text_rows[5], text_out)
    return image, text


def feed_forward(layers: Any, stream: torch.Tensor) -> torch.Tensor:
    """Apply a block's two linear layers; on a GPU the GELU between them costs no pass of its own."""
    if not stream.is_cuda:
        return layers(stream)  # type: ignore[no-any-return]
    # On a CPU this operator has the exact GELU, not the model's approximation by tanh.
    first, last = layers.net[0].proj, layers.net[2]  # pragma: no cover - needs a GPU
    return last(  # type: ignore[no-any-return]  # pragma: no cover
        torch._addmm_activation(first.bias, stream[0], first.weight.t(), use_gelu=True)[None]  # noqa: SLF001 - it has no public name
    )


def select_modulation(row: torch.Tensor, is_condition: torch.Tensor | None) -> torch.Tensor:
    """Give the condition's tokens the second row where there are two."""
    return row if is_condition is None else torch.where(is_condition, row[1:], row[:1])


def _modulate(
    stream: torch.Tensor, norm: Any, shift: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    normed = functional.layer_norm(stream, stream.shape[-1:], eps=norm.eps)
    return torch.addcmul(shift, normed, scale)


def _attend(
    attn: Any,
    image: torch.Tensor,
    text: torch.Tensor,
    angles: torch.Tensor,
    wanted: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Let text and image attend to each other, in this order as upstream has them.

    With `wanted` only so many of the image's tokens attend, and the text's outcome is empty.
    """
    count, head = text.shape[1], attn.inner_dim // attn.heads

    def project(text_linear: Any, image_linear: Any) -> torch.Tensor:
        weights = text_linear.weight, text_linear.bias, image_linear.weight, image_linear.bias
        joined: torch.Tensor = project_joined(text, image, *weights)
        return joined.view(1, joined.shape[1], -1, head)

    key = qk_norm(project(attn.add_k_proj, attn.to_k), attn.norm_added_k, attn.norm_k, count)
    if wanted is None:
        query = project(attn.add_q_proj, attn.to_q)
        attending = angles
    else:
        query = attn.to_q(image[:, :wanted]).unflatten(-1, (-1, head))
        attending, count = angles[count:][:wanted], 0
    query = qk_norm(query, attn.norm_added_q, attn.norm_q, count)
    joint: torch.Tensor = dispatch_attention_fn(
        apply_rotary(query, attending).to(image.dtype),
        apply_rotary(key, angles).to(image.dtype),
        project(attn.add_v_proj, attn.to_v),
        backend=attn.processor._attention_backend,  # noqa: SLF001 - where `set_attention_backend` puts it
    ).flatten(2)
    return attn.to_out[0](joint[:, count:]), attn.to_add_out(joint[:, :count])


def qk_norm(heads: torch.Tensor, text_norm: Any, image_norm: Any, text_tokens: int) -> torch.Tensor:
    """Norm (1, token, head, channel), the first tokens by the text's weights, and return float32.

    Compiled, norm and turn of both streams are one pass then, and nothing joins them afterwards.
    """
    is_text = torch.arange(heads.shape[1], device=heads.device) < text_tokens
    weight = torch.where(is_text[:, None, None], text_norm.weight, image_norm.weight)
    normed = functional.rms_norm(heads, heads.shape[-1:], eps=image_norm.eps)
    return normed * weight.float()


@torch.library.custom_op("retouch::project_joined", mutates_args=())
def project_joined(
    text: torch.Tensor,
    image: torch.Tensor,
    text_weight: torch.Tensor,
    text_bias: torch.Tensor,
    image_weight: torch.Tensor,
    image_bias: torch.Tensor,
) -> torch.Tensor:
    """Apply a linear layer to each stream, (1, token, dim), and return both as one, the text first.

    Each product is written to its place: `torch.cat` would copy both, which for queries, keys and values
    takes as long as a thirtieth of a block.
    """
    count = text.shape[1]
    joined = text.new_empty(1, count + image.shape[1], len(text_bias))
    torch.addmm(text_bias, text[0], text_weight.t(), out=joined[0, :count])
    torch.addmm(image_bias, image[0], image_weight.t(), out=joined[0, count:])
    return joined


@project_joined.register_fake
def _(
    text: torch.Tensor,
    image: torch.Tensor,
    text_weight: torch.Tensor,  # noqa: ARG001 - as above
    text_bias: torch.Tensor,
    image_weight: torch.Tensor,  # noqa: ARG001
    image_bias: torch.Tensor,  # noqa: ARG001
) -> torch.Tensor:
    return text.new_empty(1, text.shape[1] + image.shape[1], len(text_bias))


def apply_rotary(heads: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turn each pair of channels, in float32, by its token's angle."""
    pairs = heads.view(*heads.shape[:-1], -1, 2)
    if torch.compiler.is_compiling():  # the compiler has no code for complex numbers to fuse
        cosine, sine = angles[..., :1], angles[..., 1:]
        turned = pairs * cosine + pairs.flip(-1) * torch.cat([-sine, sine], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(angles))
    return turned.flatten(-2)
