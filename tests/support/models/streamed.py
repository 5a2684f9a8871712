"""A toy pipeline whose weights all stream, on the CPU."""

from typing import Any

import torch

from retouch.engine.memory.flat_params import flatten_pipeline
from retouch.engine.memory.plan import Plan
from retouch.engine.memory.weights import Weights


def modules_of(pipe: Any) -> dict[str, Any]:
    return {name: getattr(pipe, name) for name in ("transformer", "vae", "text_encoder")}


def stream_everything(pipe: Any, *, slots: int = 2) -> Weights:
    modules = modules_of(pipe)
    sizes = flatten_pipeline(**modules).sizes
    plan = Plan(
        "all streamed",
        streamed_blocks=frozenset(range(len(sizes.blocks))),
        streamed_layers=frozenset(range(len(sizes.layers))),
        slot_bytes=max(*sizes.blocks, *sizes.layers, *sizes.modulation),
        slots=slots,
    )
    weights = Weights(**modules, plan=plan, device=torch.device("cpu"))
    weights.allocate()
    return weights
