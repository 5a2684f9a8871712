"""Resolve the adapters of a request among those that are loaded and those that it brings."""

from collections.abc import Sequence

from retouch.editing.adapter_ports import AdapterFetcher, HeldAdapter
from retouch.editing.ports import MAX_ADAPTER_RANK, AdapterInfo, AppliedAdapter, EngineInfo
from retouch.editing.source_set import naming
from retouch.errors import InvalidRequest
from retouch.schema import Lora


def resolve_adapters(
    loras: Sequence[Lora],
    loaded: Sequence[AdapterInfo],
    own: AdapterInfo | None = None,
    *,
    max_rank: int = MAX_ADAPTER_RANK,
) -> tuple[AppliedAdapter, ...]:
    """Return the adapters to apply: the profile's `own`, those always applied, and those named.

    A scale of 0 leaves one out. The `loaded` include those that the request brings.

    Raises:
        InvalidRequest: a name is unknown, or the ranks together are over `max_rank`.
    """
    by_name = {adapter.name: adapter for adapter in loaded}
    if unknown := [lora.key for lora in loras if lora.key not in by_name]:
        known = ", ".join(by_name) or "none"
        fault = f"{unknown[0]} is not loaded; LORAS loads: {known}"
        raise InvalidRequest.for_fields({"loras": fault})
    scales = {adapter.name: adapter.scale for adapter in loaded if adapter.always}
    for lora in loras:
        scales[lora.key] = by_name[lora.key].scale if lora.scale is None else lora.scale
    chosen = [(own, own.scale)] if own else []
    chosen += [(by_name[name], scale) for name, scale in scales.items()]
    rank = sum(adapter.rank for adapter, scale in chosen if scale != _scale_in_weights(adapter))
    if rank > max_rank:
        raise InvalidRequest.for_fields(
            {"loras": f"the ranks together are {rank}; at most {max_rank} fit one edit"}
        )
    return tuple(
        AppliedAdapter(adapter.name, scale, adapter.sha256, adapter.layers, adapter.merged)
        for adapter, scale in chosen
        if scale
    )


def _scale_in_weights(adapter: AdapterInfo) -> float:
    return adapter.scale if adapter.merged else 0.0


def require_known(loras: Sequence[Lora], info: EngineInfo, own: AdapterInfo | None) -> None:
    """Check what can be checked before the files at URLs are fetched.

    Raises:
        InvalidRequest: as `resolve_adapters`; or URLs are not allowed.
    """
    if any(lora.url for lora in loras) and not info.lora_urls:
        raise InvalidRequest.for_fields({"loras": "URLs are not allowed here (ALLOW_LORA_URLS)"})
    named = [lora for lora in loras if lora.name]
    resolve_adapters(named, info.adapters, own, max_rank=info.max_adapter_rank)


async def load_adapters(
    fetcher: AdapterFetcher, loras: Sequence[Lora], *, timeout_s: float
) -> tuple[HeldAdapter, ...]:
    """Load the adapters at URLs, one after the other.

    Raises:
        EditError: as `AdapterFetcher.load`; the text and details name the field.
    """
    held = []
    for number, lora in enumerate(loras):
        if lora.url:
            with naming(f"loras[{number}].url"):
                held.append(await fetcher.load(lora.url, lora.sha256, timeout_s=timeout_s))
    return tuple(held)
