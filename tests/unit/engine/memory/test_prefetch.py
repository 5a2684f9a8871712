from itertools import pairwise

import pytest
import torch
from torch import nn

from retouch.engine.memory.flat_params import FlatParams, flatten
from retouch.engine.memory.prefetch import PrefetchRing

COUNT = 6


@pytest.fixture
def layers() -> list[nn.Linear]:
    return [nn.Linear(8, 8) for _ in range(COUNT)]


@pytest.fixture
def units(layers: list[nn.Linear]) -> list[FlatParams]:
    found = []
    for number, layer in enumerate(layers):
        unit = flatten(str(number), layer, wants=lambda _: True)
        assert unit is not None
        unit.settle(torch.empty(unit.size_bytes, dtype=torch.uint8))
        found.append(unit)
    return found


def make_ring(units: list[FlatParams], slots: int) -> PrefetchRing:
    return PrefetchRing(torch.device("cpu"), slots=slots, slot_bytes=units[0].size_bytes)


@pytest.mark.parametrize("slots", [1, 2, 3, 5, COUNT])
def test_units_come_ahead_in_their_order_and_each_once(
    units: list[FlatParams], layers: list[nn.Linear], slots: int
) -> None:
    ring = make_ring(units, slots)
    kept = [layer.weight.detach().clone() for layer in layers]
    for at, layer in enumerate(layers):
        ring.enter(units, at)
        assert torch.equal(layer.weight, kept[at])
        assert ring.copied_bytes == min(at + slots, COUNT) * units[0].size_bytes


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_the_next_step_is_on_its_way_while_one_ends(units: list[FlatParams], slots: int) -> None:
    ring, counts = make_ring(units, slots), [0]
    for _step in range(3):
        for at in range(COUNT):
            ring.enter(units * 2, at)
        counts.append(ring.copied_bytes // units[0].size_bytes)
    ahead = slots - 1
    assert [later - earlier for earlier, later in pairwise(counts)] == [COUNT + ahead, COUNT, COUNT]


def test_a_copy_that_is_broken_off_is_made_again(
    units: list[FlatParams], layers: list[nn.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot is half overwritten then: nobody may find in it what was there before."""
    ring = make_ring(units, 2)
    ring.enter(units, 0)
    copy = ring._copy  # noqa: SLF001 - the one place where a copy can be made to fail

    def fail(home: torch.Tensor, there: torch.Tensor) -> None:
        there.zero_()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(ring, "_copy", fail)
    with pytest.raises(RuntimeError):
        ring.enter(units, 2)
    ring.leave()
    monkeypatch.setattr(ring, "_copy", copy)
    for at in (0, 1, 2):
        ring.enter(units, at)
        assert torch.count_nonzero(layers[at].weight) == 64
