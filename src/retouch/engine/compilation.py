"""What makes a block fast and changes no result: the attention kernel, and the compiler."""

import os
from pathlib import Path
from typing import Any

import torch

from retouch.engine import transformer


def find_code_cache() -> Path | None:
    """Return the folder for compiled code: beside the hub library's, if that can be written."""
    from huggingface_hub.constants import HF_HOME

    home = Path(HF_HOME)
    nearest = next(folder for folder in (home, *home.parents) if folder.is_dir())
    return home / "compiled" if os.access(nearest, os.W_OK) else None


def compile_block(cache_dir: Path | None = None) -> transformer.BlockCall:
    """Compile the one function that runs every block, and keep its code in `cache_dir`.

    The number of text tokens, another for each prompt, is left open from the first; that of image
    tokens from the second size on, so that a worker with one size runs code made for it.
    """
    if cache_dir:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir))
    compiled: Any = torch.compile(transformer.run_block)
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
