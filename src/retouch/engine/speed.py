"""What makes a block fast and changes no result: the attention kernel, and the compiler."""

import os
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from retouch.engine import denoise
from retouch.errors import ModelError


def require_backend(name: str, device: torch.device) -> None:
    """Run `name`, one of diffusers' attention backends, once on a small input.

    Raises:
        ModelError: there is no such backend, or it does not run here, or it is wrong.
    """
    if name not in {backend.value for backend in AttentionBackendName}:
        known = ", ".join(sorted(backend.value for backend in AttentionBackendName))
        raise ModelError(f"ATTENTION_BACKEND: there is no {name}, but {known}")
    if name == "native":
        return
    half = torch.bfloat16 if device.type == "cpu" or torch.cuda.is_bf16_supported() else torch.half
    generator = torch.Generator().manual_seed(0)
    shape = (1, 128, 2, 128)  # (b, s, h, d/h), with the model's own heads of 128
    query, key, value = (torch.randn(shape, generator=generator).to(device, half) for _ in range(3))
    try:
        found = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))
        wanted = dispatch_attention_fn(query, key, value, backend=AttentionBackendName.NATIVE)
        error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    except Exception as fault:
        reason = str(fault).strip().partition("\n")[0] or type(fault).__name__
        raise ModelError(f"ATTENTION_BACKEND: {name} does not run here: {reason}") from fault
    if not error < MAX_BACKEND_ERROR:
        raise ModelError(f"ATTENTION_BACKEND: {name} is wrong here by {float(error):.0%}")


MAX_BACKEND_ERROR = 0.1
"""Of the norm: int8 kernels stay within a few per cent, a wrong layout does not."""


def find_code_cache() -> Path | None:
    """Return the folder for compiled code: beside the hub library's, if that can be written."""
    from huggingface_hub.constants import HF_HOME

    home = Path(HF_HOME)
    nearest = next(folder for folder in (home, *home.parents) if folder.is_dir())
    return home / "compiled" if os.access(nearest, os.W_OK) else None


def compile_block(cache_dir: Path | None = None) -> denoise.BlockCall:
    """Compile the one function that runs every block, and keep its code in `cache_dir`.

    The number of text tokens, another for each prompt, is left open from the first; that of image
    tokens from the second size on, so that a worker with one size runs code made for it.
    """
    if cache_dir:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir))
    compiled: Any = torch.compile(denoise.run_block)
    mark: Any = torch._dynamo.maybe_mark_dynamic  # noqa: SLF001 - documented for this use

    def run(
        block: Any,
        image: torch.Tensor,
        text: torch.Tensor,
        image_table: torch.Tensor,
        text_table: torch.Tensor,
        angles: torch.Tensor,
        is_condition: torch.Tensor | None,
        wanted: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        image, text = _own(image), _own(text)
        mark(text, 1)
        mark(angles, 0)  # of text and image tokens together
        found: tuple[torch.Tensor, torch.Tensor] = compiled(
            block, image, text, image_table, text_table, angles, is_condition, wanted
        )
        return found

    return run


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a view, as only the first block gets: the compiler would make code for that alone."""
    return tensor.clone() if tensor._is_view() else tensor  # noqa: SLF001 - there is no public name
