"""Keep fp16 residual streams in range by scaling weights with a power of two.

All norms between the transformer's residual streams and its layers lack weights of their own, so
both streams may be divided by any number: weights that write to them are multiplied by
1 / RESIDUAL_SCALE, and the norms' epsilon by 1 / RESIDUAL_SCALE squared. With a power of two no bit
changes as long as no value leaves the format.
"""

from typing import Any

import torch

RESIDUAL_SCALE = 512.0
"""The residual streams reach about 2e7 (Draw Things, "Optimizing Qwen Image for Edge Devices"), and
float16 ends at 65504: 512 is the smallest power of two that makes room for them."""
_CHUNK = 1 << 24
_WRITERS = ("attn.to_out.0", "attn.to_add_out", "img_mlp.net.2", "txt_mlp.net.2")
_SOURCES = ("img_in", "txt_in")


class Fp16Overflow(Exception):
    """Values left the range of the transformer's precision."""


def residual_scale(path: str, dtype: torch.dtype) -> float:
    """Return the factor of the weight at `path` in a pipeline whose transformer is in `dtype`.

    1 / RESIDUAL_SCALE for the transformer's weights that write to a residual stream in float16.

    >>> residual_scale("transformer.transformer_blocks.7.attn.to_out.0.bias", torch.float16)
    0.001953125
    >>> residual_scale("transformer.proj_out.weight", torch.float16)
    1.0
    """
    part, _, name = path.partition(".")
    owner = name.rpartition(".")[0]
    writes = part == "transformer" and (owner in _SOURCES or owner.endswith(_WRITERS))
    return 1 / RESIDUAL_SCALE if writes and dtype == torch.float16 else 1.0


def scale_norms(transformer: Any) -> None:
    """Scale the epsilon of every norm that reads a residual stream. Call it once."""
    norms = [transformer.norm_out.norm]
    for block in transformer.transformer_blocks:
        norms += [block.img_norm1, block.img_norm2, block.txt_norm1, block.txt_norm2]
    for norm in norms:
        norm.eps /= RESIDUAL_SCALE**2


def recast(weights: torch.Tensor, dtype: torch.dtype, *, factor: float = 1.0) -> torch.Tensor:
    """Return `weights` times `factor` as `dtype`, in the same memory if a value has the same size.

    That overwrites `weights`, so the caller drops them. Works in chunks, with at most 64 MiB beside.
    """
    into = torch.empty_like(weights, dtype=dtype)
    if weights.element_size() == dtype.itemsize:
        into = weights.view(dtype)
    for old, new in zip(_chunks(weights), _chunks(into), strict=True):
        new.copy_(old * factor)
    return into


def choose_dtypes(dtype: torch.dtype, device: torch.device) -> dict[str, torch.dtype]:
    """Return the dtype of each part on `device` for a transformer in `dtype`.

    The text encoder overflows in float16 (huggingface/transformers#33294), and so may the autoencoder.
    """
    has_bfloat16 = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    wide = torch.bfloat16 if has_bfloat16 and dtype != torch.float32 else torch.float32
    return {"transformer": dtype, "text_encoder": wide, "vae": wide}


def _chunks(weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(weights.view(-1), _CHUNK)
