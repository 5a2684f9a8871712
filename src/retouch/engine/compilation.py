"""Compile the transformer's block, with its code cached on disk."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retouch.engine.transformer import BlockCall

_MAX_VARIANTS = 64


def find_code_cache() -> Path | None:
    """Return the directory for compiled code, beside the hub's cache, if that is writable.

    torch reads it from TORCHINDUCTOR_CACHE_DIR when it first compiles.
    """
    from huggingface_hub.constants import HF_HOME

    home = Path(HF_HOME)
    nearest = next(folder for folder in (home, *home.parents) if folder.is_dir())
    return home / "compiled" if os.access(nearest, os.W_OK) else None


def compile_block(run_block: "BlockCall") -> "BlockCall":
    """Compile the one function that runs every block.

    The number of text tokens differs with each prompt, so it is dynamic from the first call; that of
    image tokens from the second size on, so that a worker with one size runs code made for it.
    """
    import torch

    # Beyond the limit, by default 8, calls run uncompiled: the last block and the ranks of adapters
    # have code of their own, each for the first size and for any.
    torch._dynamo.config.recompile_limit = _MAX_VARIANTS  # noqa: SLF001 - the documented switch
    compiled: Any = torch.compile(run_block)
    mark: Any = torch._dynamo.maybe_mark_dynamic  # noqa: SLF001 - documented for this use

    def run(block: Any, image: Any, text: Any, *rest: Any) -> Any:
        _modulation, angles, *_ = rest
        image, text = (
            # Copy a view, as only the first block gets: it would be compiled for that alone.
            stream.clone() if stream._is_view() else stream  # noqa: SLF001 - there is no public name
            for stream in (image, text)
        )
        mark(text, 1)  # (1, t, dim)
        mark(angles, 0)  # (t + i, 1, c/2, 2)
        return compiled(block, image, text, *rest)

    return run
