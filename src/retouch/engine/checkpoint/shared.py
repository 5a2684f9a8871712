"""Place a checkpoint's weights: on the host once for all processes that share its memory."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.checkpoint.entries import TensorEntry
from retouch.engine.memory.flat_params import Encode, flatten_pipeline
from retouch.engine.memory.plan import FreeMemory, Plan
from retouch.engine.memory.weights import Weights


def place(
    modules: Mapping[str, Any],
    make_plan: Callable[[FreeMemory], tuple[Encode, Plan]],
    memory: FreeMemory,
    stored: Mapping[str, TensorEntry],
    adapters: LoadedAdapters,
    *,
    dtype: torch.dtype,
    **options: Any,
) -> Weights:
    """Return the weights of `modules` where `make_plan` puts them, not yet read; `options` are of `Weights`.

    Those on the host are in the memory that `memory` shares, if what other processes have there
    follows from the same files, storage and merged adapters. Where processes stream different
    units, each has those that it streams.

    Raises:
        ModelError: memory is short.
    """
    encode, plan = make_plan(memory)
    shared = None
    if memory.share and plan.slots:
        params = flatten_pipeline(**modules, encode=encode)
        files = {entry.path: entry.path.stat() for entry in stored.values()}
        merged = [one for one in adapters.fixed if one.name in adapters.merged]
        source = [
            str(dtype),
            [(path, stat.st_size, stat.st_mtime_ns) for path, stat in sorted(files.items())],
            [(unit.name, unit.layout) for unit in params],
            [(one.adapter.sha256, one.scale) for one in merged],
        ]
        shared = memory.share.open(repr(source), [unit.size_bytes for unit in params])
        if not shared:  # a file was replaced since another process read it, or its GPU is another
            encode, plan = make_plan(replace(memory, share=None))
    return Weights(**modules, plan=plan, encode=encode, shared=shared, **options)
