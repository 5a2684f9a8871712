"""The adapters that are loaded: in host memory, and the terms of the latest edit on the device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from retouch.editing.ports import MAX_ADAPTER_RANK, AdapterInfo, AppliedAdapter, ProfileInfo
from retouch.engine.adapters.read import Adapter, Shape
from retouch.engine.adapters.terms import NO_TERMS, Terms, block_layers, build_terms, count_bytes
from retouch.schema import MAX_LORAS


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter with its name, and the scale and rule of its use as in `AdapterInfo`."""

    name: str
    adapter: Adapter
    scale: float = 1.0
    always: bool = False

    @property
    def info(self) -> AdapterInfo:
        """What requests see of it."""
        return AdapterInfo(
            name=self.name,
            sha256=self.adapter.sha256,
            layers=len(self.adapter.layers),
            rank=self.adapter.rank,
            scale=self.scale,
            always=self.always,
        )


class LoadedAdapters:
    """Adapters by name for a transformer whose linear layers have these `shapes`.

    `weight_factor` is what the weight of a layer was multiplied by when it was read. `profiles` come with
    their own adapters, which requests cannot name.
    """

    def __init__(
        self,
        adapters: Sequence[NamedAdapter] = (),
        shapes: Mapping[str, Shape] | None = None,
        weight_factor: Callable[[str], float] = lambda _: 1.0,
        profiles: Sequence[tuple[ProfileInfo, NamedAdapter | None]] = (),
    ) -> None:
        owned = [named for _, named in profiles if named]
        adapters = [*adapters, *owned]
        self._adapters = {one.name: one.adapter for one in adapters}
        self._shapes = shapes or {}
        self._weight_factor = weight_factor
        self._block_layers = block_layers({name for one in adapters for name in one.adapter.layers})
        self._latest = NO_TERMS
        self.info = tuple(one.info for one in adapters if one not in owned)
        self.profiles = tuple(profile for profile, _ in profiles)
        self.host_bytes = sum(one.adapter.size_bytes for one in adapters)
        """Host memory of the files."""

    @property
    def terms_bytes(self) -> int:
        """The most GPU memory that the terms of an edit take, in 16 bits."""
        own = max((one.adapter.rank for one in self.profiles if one.adapter), default=0)
        always = sum(one.rank for one in self.info if one.always)
        named = sorted((one.rank for one in self.info if not one.always), reverse=True)
        rank = min(own + always + sum(named[:MAX_LORAS]), MAX_ADAPTER_RANK)
        return count_bytes(self._shapes, self._block_layers, rank) if rank else 0

    def get_terms(self, applied: Sequence[AppliedAdapter], like: torch.Tensor) -> Terms:
        """Return the terms of an edit on the device and in the dtype of `like`.

        Those of the latest edit are kept there, so that a series with the same adapters copies once.
        """
        if not applied:
            return NO_TERMS
        key = (str(like.dtype), *((one.name, one.sha256, one.scale) for one in applied))
        if self._latest.key != key:
            self._latest = NO_TERMS  # frees its memory for the next
            self._latest = build_terms(
                [(self._adapters[one.name].layers, one.scale) for one in applied],
                self._shapes,
                self._block_layers,
                weight_factor=self._weight_factor,
                like=like,
                key=key,
            )
        return self._latest
