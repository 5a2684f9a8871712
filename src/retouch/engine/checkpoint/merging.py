"""Decide which fixed adapters are merged into a checkpoint's weights, and measure what that loses."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from retouch.engine.adapters.loaded import LoadedAdapters, NamedAdapter
from retouch.engine.adapters.merge import MAX_LOSS, LossProbe, MergedWeight, MergeLoss, Update
from retouch.engine.adapters.read import Adapter
from retouch.engine.checkpoint.entries import TensorEntry, read_headers
from retouch.engine.checkpoint.safetensors_reader import Destination, read_weights
from retouch.engine.memory.encode import encode_as
from retouch.engine.memory.flat_params import Encode, PackedWeight
from retouch.engine.memory.plan import EditShape, FreeMemory, Plan
from retouch.engine.memory.quantization import Quantization
from retouch.engine.packing.encoding import Encoding, Packer, Plain
from retouch.engine.precision import residual_scale
from retouch.logs import event

_log = logging.getLogger(__name__)
SAMPLE = 97
"""Layers, evenly spaced, that the loss is measured on at start: reading all twice would take as long
as loading does."""
_STORAGES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.float16}
"""What `describe_losses` measures, with the type of what is not packed."""


@dataclass(frozen=True)
class Storage:
    """How the transformer's weights are stored: packed as `encode` says, else in `dtype`.

    `scale` is the factor of the weight at a path.
    """

    encode: Encode
    dtype: torch.dtype
    scale: Callable[[str], float]

    def of(self, path: str, shape: tuple[int, ...]) -> Encoding:
        """Return the encoding of a weight."""
        return self.encode(path, shape) or Plain(self.dtype)


def weight_path(layer: str) -> str:
    """Return the path of a layer's weight in the pipeline.

    >>> weight_path("proj_out")
    'transformer.proj_out.weight'
    """
    return f"transformer.{layer}.weight"


def choose_merged(
    adapters: LoadedAdapters,
    stored: Mapping[str, TensorEntry],
    storage: Storage,
    device: torch.device,
) -> frozenset[str]:
    """Return the names of the fixed adapters that lose little enough by merging; log each one's loss.

    Raises:
        ModelError: the weights that they change cannot be read.
    """
    return frozenset(
        named.name for named in adapters.fixed if _is_mergeable(named, stored, storage, device)
    )


def plan_with_adapters(
    adapters: LoadedAdapters,
    plan: Callable[..., tuple[Quantization, Plan]],
    shape: EditShape,
    memory: FreeMemory,
    *,
    encode: Callable[[Quantization], Encode],
    choose: Callable[[Encode], frozenset[str]],
) -> tuple[Encode, Plan]:
    """Plan as if all fixed adapters were merged, and again if `choose` leaves some unmerged.

    Only a plan says how weights are stored, and so what merging loses.

    Raises:
        ModelError: memory is short.
    """

    def plan_now() -> tuple[Encode, Plan]:
        choice, made = plan(
            shape=replace(shape, adapter_bytes=adapters.terms_bytes),
            memory=replace(memory, host_bytes=memory.host_bytes - adapters.host_bytes),
        )
        return encode(choice), made

    adapters.merged = frozenset(one.name for one in adapters.fixed)
    found = plan_now()
    merged = choose(found[0])
    if merged == adapters.merged:
        return found
    adapters.merged = merged
    return plan_now()


def _is_mergeable(
    named: NamedAdapter,
    stored: Mapping[str, TensorEntry],
    storage: Storage,
    device: torch.device,
) -> bool:
    layers = {weight_path(name): layer for name, layer in named.merged_layers.items()}
    encodings: dict[str, Any] = {
        path: storage.of(path, layer.shape) for path, layer in layers.items()
    }
    fixed = next((one.name for one in encodings.values() if not hasattr(one, "pack")), "")
    loss = 0.0
    if not fixed:
        chosen = sorted(layers)[:: -(-len(layers) // SAMPLE) or 1]
        updates = {path: (layers[path], named.scale) for path in chosen}
        storages = {path: {"": (encodings[path], storage.scale(path))} for path in encodings}
        loss = measure_losses(updates, stored, storages, device)[""].share
    is_merged = not fixed and loss <= MAX_LOSS
    event(
        _log,
        "adapter.placed",
        name=named.name,
        merged=is_merged,
        merge_loss=None if fixed else round(loss, 4),
        packed=fixed or None,
    )
    return is_merged


def measure_losses(
    updates: Mapping[str, Update],
    stored: Mapping[str, TensorEntry],
    storages: Mapping[str, Mapping[str, tuple[Packer, float]]],
    device: torch.device,
) -> dict[str, MergeLoss]:
    """Return the loss of merging `updates`, by the path of the weight, for each way to store it.

    `storages` has by path and name an encoding that packs and the factor before it.

    Raises:
        ModelError: a weight is missing or cannot be read.
    """
    losses: dict[str, MergeLoss] = defaultdict(MergeLoss)
    probes: dict[str, Destination] = {
        path: LossProbe(update[0].shape, device, update, storages[path], losses)
        for path, update in updates.items()
    }
    read_weights(stored, probes)
    return losses


def describe_losses(adapter: Adapter, folder: Path, device: torch.device) -> Iterator[str]:
    """Say what merging all layers at scale 1 into a checkpoint would lose, a line for each storage.

    Raises:
        ModelError: the checkpoint's weights cannot be read.
    """
    layers = NamedAdapter("", adapter).merged_layers
    updates = {weight_path(name): (layer, 1.0) for name, layer in layers.items()}
    storages = {
        name: Storage(encode_as(Quantization(name)), dtype, partial(residual_scale, dtype=dtype))
        for name, dtype in _STORAGES.items()
    }
    packers: dict[str, dict[str, Any]] = {
        path: {
            name: (storage.of(path, layer.shape), storage.scale(path))
            for name, storage in storages.items()
        }
        for path, (layer, _) in updates.items()
    }
    losses = measure_losses(updates, read_headers(folder, ["transformer"]), packers, device)
    yield f"merged it would lose (over {MAX_LOSS:.2f} it stays unmerged):"
    yield from (f"  {losses[name].share:.4f} in {name}" for name in storages)


def merge_into(
    destinations: Mapping[str, torch.Tensor | PackedWeight], adapters: LoadedAdapters
) -> dict[str, Destination]:
    """Return where weights live, so that the `merged` adapters are added to them on their way."""
    updates: dict[str, list[Update]] = defaultdict(list)
    for named in adapters.fixed:
        if named.name in adapters.merged:
            for layer, update in named.merged_layers.items():
                updates[weight_path(layer)].append((update, named.scale))
    return {
        path: MergedWeight(into, updates[path]) if path in updates else into
        for path, into in destinations.items()
    }
