"""Adapters for the tiny model, and the same model with them merged into its weights exactly."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from retouch.engine.adapters.loaded import LoadedAdapters, NamedAdapter
from retouch.engine.adapters.read import Shape, read_adapter
from retouch.engine.adapters.shapes import layer_shapes
from support.models.lora_files import Pair, build_tensors, draw_pairs, write
from support.models.tiny import build_tiny_pipeline

SHAPES: Mapping[str, Shape] = layer_shapes(build_tiny_pipeline().transformer.config)


def draw(*, rank: int = 4, seed: int = 1, only: str = "") -> dict[str, Pair]:
    """Draw an adapter of the tiny model, of the layers whose names contain `only`."""
    shapes = {name: shape for name, shape in SHAPES.items() if only in name}
    pairs = draw_pairs(shapes, rank=rank, seed=seed)
    return {name: (0.5 * down, 0.5 * up) for name, (down, up) in pairs.items()}


def name_adapter(
    folder: Path, name: str, pairs: Mapping[str, Pair], *, always: bool = False, scale: float = 1.0
) -> NamedAdapter:
    """Write an adapter as a file in `folder` and load it."""
    path = write(folder / f"{name}.safetensors", build_tensors(pairs, "diffusers"))
    return NamedAdapter(name, read_adapter(path, SHAPES), scale, always)


def load(*adapters: NamedAdapter, **options: Any) -> LoadedAdapters:
    """Load adapters for the tiny model."""
    return LoadedAdapters(adapters, SHAPES, **options)


def merge_exactly(transformer: Any, pairs: Mapping[str, Pair], scale: float) -> None:
    """Add an adapter to a transformer's weights, in their own precision."""
    for name, (down, up) in pairs.items():
        weight = transformer.get_submodule(name).weight.data
        weight += scale * (up @ down).to(weight.dtype)


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max())
