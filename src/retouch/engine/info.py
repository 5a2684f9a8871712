"""Describe a loaded engine."""

from typing import Any

import torch

from retouch.editing.ports import EngineInfo, GenerationDefaults
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.memory.weights import Weights
from retouch.engine.preset import PresetFile


def describe(
    weights: Weights, preset: PresetFile, adapters: LoadedAdapters, **known: Any
) -> EngineInfo:
    """Return the info of an engine over `weights`; `known` are the fields that these do not give."""
    default = adapters.profiles[0] if adapters.profiles else preset
    return EngineInfo(
        dtype=name_of(weights.transformer.dtype),
        memory_plan=weights.plan.name,
        quantization=weights.plan.quantization,
        preset=GenerationDefaults(
            steps=default.steps,
            guidance_scale=default.guidance_scale,
            area_px=preset.area_px,
            guided=preset.guided,
        ),
        notes=preset.notes,
        examples=preset.examples,
        adapters=adapters.info,
        profiles=adapters.profiles,
        lora_urls=adapters.kept is not None,
        max_adapter_rank=adapters.max_rank,
        adapter_choices=tuple(adapters.choices.values()),
        **known,
    )


def name_of(dtype: torch.dtype) -> str:
    """Return a dtype's name.

    >>> name_of(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
