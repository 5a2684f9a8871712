"""The padded ranks that edits can reach with the adapters that are loaded: each has code of its own."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

from retouch.editing.ports import AdapterChoice, AdapterInfo, ProfileInfo
from retouch.engine.adapters.terms import pad_rank
from retouch.schema import MAX_LORAS


def find_choices(
    adapters: Sequence[AdapterInfo], profiles: Sequence[ProfileInfo], max_rank: int
) -> dict[int, AdapterChoice]:
    """Return a choice of a request for each padded rank, 0 for none; first what a request gets that chooses nothing.

    >>> wide, narrow = AdapterInfo("wide", "", 1, 40), AdapterInfo("narrow", "", 1, 10, always=True)
    >>> [(rank, choice.scales) for rank, choice in find_choices([wide, narrow], [], 512).items()]
    [(16, ()), (64, (('wide', 1.0),)), (0, (('narrow', 0.0),))]
    """
    found: dict[int, AdapterChoice] = {}
    owned = [(one.name, one.adapter) for one in profiles] or [("", None)]
    for profile, own in owned:
        base = sum(one.rank for one in adapters if one.always and not one.merged)
        base += own.rank if own and not own.merged else 0
        for named in _subsets(adapters):
            rank = base + sum(_add_rank(one) for one in named)
            if rank <= max_rank:
                scales = tuple((one.name, _switch(one)) for one in named)
                choice = AdapterChoice(profile, scales)
                found.setdefault(pad_rank(rank) if rank else 0, choice)
    return found


def _subsets(adapters: Sequence[AdapterInfo]) -> Iterator[tuple[AdapterInfo, ...]]:
    """Yield what a request can name, the fewest first: of adapters alike only as many as it may name."""
    alike: dict[int, list[AdapterInfo]] = defaultdict(list)
    for one in adapters:
        alike[_add_rank(one)].append(one)
    few = [one for group in alike.values() for one in group[:MAX_LORAS]]
    for count in range(MAX_LORAS + 1):
        yield from combinations(few, count)


def _add_rank(adapter: AdapterInfo) -> int:
    """Return what naming an adapter with the scale of `_switch` adds to an edit's rank."""
    return -adapter.rank if adapter.always and not adapter.merged else adapter.rank


def _switch(adapter: AdapterInfo) -> float:
    return 0.0 if adapter.always or adapter.merged else adapter.scale
