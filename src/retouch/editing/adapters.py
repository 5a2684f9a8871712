"""Resolve the adapters of a request among those that are loaded: pure functions, no I/O."""

from collections.abc import Sequence

from retouch.editing.ports import MAX_ADAPTER_RANK, AdapterInfo, AppliedAdapter
from retouch.errors import InvalidRequest
from retouch.schema import Lora


def resolve_adapters(
    loras: Sequence[Lora], loaded: Sequence[AdapterInfo], own: AdapterInfo | None = None
) -> tuple[AppliedAdapter, ...]:
    """Return the adapters to apply: the profile's `own`, those always applied, and those named.

    A scale of 0 leaves one out.

    Raises:
        InvalidRequest: a name is unknown, or the ranks together are over `MAX_ADAPTER_RANK`.
    """
    by_name = {adapter.name: adapter for adapter in loaded}
    if unknown := [lora.name for lora in loras if lora.name not in by_name]:
        known = ", ".join(by_name) or "none"
        raise InvalidRequest.for_fields(
            {"loras": f"{unknown[0]} is not loaded; loaded are: {known}"}
        )
    scales = {adapter.name: adapter.scale for adapter in loaded if adapter.always}
    for lora in loras:
        scales[lora.name] = by_name[lora.name].scale if lora.scale is None else lora.scale
    chosen = [(own, own.scale)] if own else []
    chosen += [(by_name[name], scale) for name, scale in scales.items()]
    rank = sum(adapter.rank for adapter, scale in chosen if scale != _scale_in_weights(adapter))
    if rank > MAX_ADAPTER_RANK:
        raise InvalidRequest.for_fields(
            {"loras": f"the ranks together are {rank}; at most {MAX_ADAPTER_RANK} fit one edit"}
        )
    return tuple(
        AppliedAdapter(adapter.name, scale, adapter.sha256, adapter.layers, adapter.merged)
        for adapter, scale in chosen
        if scale
    )


def _scale_in_weights(adapter: AdapterInfo) -> float:
    return adapter.scale if adapter.merged else 0.0
