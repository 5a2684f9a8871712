"""Half precision that cannot come out black: weights folded by a power of two, and a way back.

All norms between the transformer's residual streams and its layers lack weights of their own, so
both streams may be divided by any number: what writes to them is scaled by 1 / FOLD, and the norms'
epsilon by 1 / FOLD². With a power of two no bit changes as long as no value leaves the format.
"""

from typing import Any

import torch

RESIDUAL_SCALE = 512.0
"""The residual streams reach about 2e7 (Draw Things, "Optimizing Qwen Image for Edge Devices"), and
float16 ends at 65504: 512 is the least power of two that leaves room for them."""
NEVER_SCALED = 1.0
_CHUNK = 1 << 24
_WRITERS = ("attn.to_out.0", "attn.to_add_out", "img_mlp.net.2", "txt_mlp.net.2")
_SOURCES = ("img_in", "txt_in")


class Fp16Overflow(Exception):
    """Values left the range of the transformer's precision."""


def fold_factor(name: str) -> float:
    """Return what the transformer's weight `name` is multiplied by: 1 / FOLD where it writes to a stream.

    >>> fold_factor("transformer_blocks.7.attn.to_out.0.bias"), fold_factor("proj_out.weight")
    (0.001953125, 1.0)
    """
    owner = name.rpartition(".")[0]
    return 1 / RESIDUAL_SCALE if owner in _SOURCES or owner.endswith(_WRITERS) else NEVER_SCALED


def find_factor(path: str, dtype: torch.dtype) -> float:
    """Return what the weight at `path` in a pipeline is multiplied by in `dtype`.

    >>> find_factor("transformer.img_in.weight", torch.float16), find_factor("vae.x", torch.float16)
    (0.001953125, 1.0)
    """
    part, _, name = path.partition(".")
    return fold_factor(name) if part == "transformer" and dtype == torch.float16 else NEVER_SCALED


def fold_norms(transformer: Any) -> None:
    """Scale the epsilon of every norm that reads a stream; once, for folded weights of any dtype."""
    norms = [transformer.norm_out.norm]
    for block in transformer.transformer_blocks:
        norms += [block.img_norm1, block.img_norm2, block.txt_norm1, block.txt_norm2]
    for norm in norms:
        norm.eps /= RESIDUAL_SCALE**2


def recast(weights: torch.Tensor, dtype: torch.dtype, *, factor: float = 1.0) -> torch.Tensor:
    """Return `weights` times `factor` as `dtype`, in the same memory if a value takes as much there.

    What was in that memory is gone, so the caller drops the old tensor. Made chunk by chunk, it takes
    no more than 64 MiB beside it.
    """
    into = torch.empty_like(weights, dtype=dtype)
    if weights.element_size() == dtype.itemsize:
        into = weights.view(dtype)
    for old, new in zip(_chunks(weights), _chunks(into), strict=True):
        new.copy_(old * factor)
    return into


def choose_dtypes(dtype: torch.dtype, *, has_bfloat16: bool) -> dict[str, torch.dtype]:
    """Return the dtype of each part for a transformer in `dtype`.

    The text encoder overflows in float16 (huggingface/transformers#33294), as the autoencoder may.
    """
    wide = torch.bfloat16 if has_bfloat16 and dtype != torch.float32 else torch.float32
    return {"transformer": dtype, "text_encoder": wide, "vae": wide}


def _chunks(weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(weights.view(-1), _CHUNK)
