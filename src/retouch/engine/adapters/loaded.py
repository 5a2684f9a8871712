"""The adapters that are loaded: in host memory, and the terms of the latest edit on the device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from retouch.editing.ports import (
    MAX_ADAPTER_RANK,
    AdapterChoice,
    AdapterInfo,
    AppliedAdapter,
    ProfileInfo,
)
from retouch.engine.adapters.kept import KeptAdapters
from retouch.engine.adapters.reach import find_choices
from retouch.engine.adapters.read import Adapter, LowRank, Shape
from retouch.engine.adapters.source import URL_FILES
from retouch.engine.adapters.terms import (
    NO_TERMS,
    Terms,
    block_layers,
    build_terms,
    count_bytes,
    is_modulation,
    pad_rank,
)
from retouch.schema import MAX_LORAS

URL_RANK = 128
"""Of the adapters at URLs of one edit together: what the plan has room for, 1.6 GiB of the full model."""


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter with its name, and the scale and rule of its use as in `AdapterInfo`.

    A `fixed` one may be merged into the weights at its `scale`.
    """

    name: str
    adapter: Adapter
    scale: float = 1.0
    always: bool = False
    fixed: bool = False

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

    @property
    def merged_layers(self) -> dict[str, LowRank]:
        """The updates that merging adds to weights: all but the modulation's.

        That runs once a schedule, so that its terms cost nothing, and may be mapped from its file.
        """
        return {
            name: layer for name, layer in self.adapter.layers.items() if not is_modulation(name)
        }

    @property
    def other_layers(self) -> dict[str, LowRank]:
        """The updates that stay terms."""
        return {name: layer for name, layer in self.adapter.layers.items() if is_modulation(name)}


class LoadedAdapters:
    """Adapters by name for a transformer whose linear layers have these `shapes`.

    `weight_factor` is what the weight of a layer was multiplied by when it was read. `profiles` come with
    their own adapters, which requests cannot name. `merged` are the names of those `fixed` ones that are
    in the weights. Where `url_bytes` is not 0, requests may bring adapters of so many bytes together.
    """

    def __init__(
        self,
        adapters: Sequence[NamedAdapter] = (),
        shapes: Mapping[str, Shape] | None = None,
        weight_factor: Callable[[str], float] = lambda _: 1.0,
        profiles: Sequence[tuple[ProfileInfo, NamedAdapter | None]] = (),
        url_bytes: int = 0,
    ) -> None:
        self._offered = adapters
        self._owned = [named for _, named in profiles if named]
        self._profiles = [profile for profile, _ in profiles]
        self._shapes = shapes or {}
        self._weight_factor = weight_factor
        self._latest = NO_TERMS
        self.fixed = [one for one in self._all if one.fixed]
        self.merged: frozenset[str] = frozenset()
        self.kept = KeptAdapters(self._shapes, url_bytes) if url_bytes else None
        on_the_way = 2 * url_bytes // URL_FILES  # as downloaded, and as it is read
        self.host_bytes = sum(one.adapter.size_bytes for one in self._all) + url_bytes + on_the_way
        """Host memory of the files."""

    @property
    def _all(self) -> list[NamedAdapter]:
        return [*self._offered, *self._owned]

    @property
    def names(self) -> set[str]:
        """The names of all but those that requests brought."""
        return {one.name for one in self._all}

    @property
    def info(self) -> tuple[AdapterInfo, ...]:
        """The adapters that requests may name."""
        return tuple(self._say_merged(one.info) for one in self._offered)

    @property
    def profiles(self) -> tuple[ProfileInfo, ...]:
        """The profiles that requests may name, the default first."""
        return tuple(
            replace(one, adapter=self._say_merged(one.adapter)) if one.adapter else one
            for one in self._profiles
        )

    def _say_merged(self, info: AdapterInfo) -> AdapterInfo:
        return replace(info, merged=info.name in self.merged)

    @property
    def block_layers(self) -> list[str]:
        """The layers of a block that have terms in an edit with the adapters that are loaded."""
        with_terms = [one for one in self._owned if one.name not in self.merged]
        return block_layers(
            {name for one in (*self._offered, *with_terms) for name in one.adapter.layers}
        )

    @property
    def max_rank(self) -> int:
        """The most that the ranks of an edit's adapters may be together: what the plan has room for."""
        return pad_rank(self._planned_rank) if self.kept else MAX_ADAPTER_RANK

    @property
    def choices(self) -> dict[int, AdapterChoice]:
        """A request's choice for each padded rank that it can reach with what is loaded."""
        return find_choices(self.info, self.profiles, self.max_rank)

    @property
    def terms_bytes(self) -> int:
        """The most GPU memory that the terms of an edit take, in 16 bits."""
        rank = self._planned_rank
        layers = block_layers(self._shapes) if self.kept else self.block_layers
        return count_bytes(self._shapes, layers, rank) if rank else 0

    @property
    def _planned_rank(self) -> int:
        owned = [one.adapter.rank for one in self._owned if one.name not in self.merged]
        always = sum(one.rank for one in self.info if one.always and not one.merged)
        named = sorted(
            (one.rank for one in self.info if one.merged or not one.always), reverse=True
        )
        chosen = max(sum(named[:MAX_LORAS]), URL_RANK if self.kept else 0)
        return min(max(owned, default=0) + always + chosen, MAX_ADAPTER_RANK)

    def get_terms(self, applied: Sequence[AppliedAdapter], like: torch.Tensor) -> Terms:
        """Return the terms of an edit on the device and in the dtype of `like`.

        Those of the latest edit are kept there, so that a series with the same adapters copies once.
        """
        updates = list(self._list_updates(applied))
        if not updates:
            return NO_TERMS
        key = (str(like.dtype), *(key for key, _, _ in updates))
        if self._latest.key != key:
            self._latest = NO_TERMS  # frees its memory for the next
            self._latest = build_terms(
                [(layers, scale) for _, layers, scale in updates],
                self._shapes,
                sorted({*self.block_layers, *block_layers(_names(updates))}),
                weight_factor=self._weight_factor,
                like=like,
                key=key,
            )
        return self._latest

    def _list_updates(
        self, applied: Sequence[AppliedAdapter]
    ) -> Iterator[tuple[tuple[object, ...], Mapping[str, LowRank], float]]:
        """Yield what terms add to the weights: a key, layers and a scale other than 0.

        Of a merged adapter that is the difference to the scale at which it is in the weights.
        """
        scales = {one.name: one.scale for one in applied}
        for one in self._all:
            wanted = scales.get(one.name, 0.0)
            parts = [(one.adapter.layers, wanted)]
            if one.name in self.merged:
                parts = [(one.merged_layers, wanted - one.scale), (one.other_layers, wanted)]
            for layers, scale in parts:
                if layers and scale:
                    yield (one.name, len(layers), one.adapter.sha256, scale), layers, scale
        own = self.names
        for brought in applied:
            held = self.kept.find(brought.sha256) if self.kept and brought.name not in own else None
            if held:
                yield (brought.sha256, brought.scale), held.weights.layers, brought.scale


def _names(updates: Sequence[tuple[object, Mapping[str, LowRank], float]]) -> set[str]:
    return {name for _, layers, _ in updates for name in layers}
