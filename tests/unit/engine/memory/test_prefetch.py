from itertools import pairwise

import pytest
import torch
from torch import nn

from retouch.engine.memory import prefetch
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
        (unit,) = flatten(str(number), layer, wants=lambda _: True)
        unit.allocate(torch.empty(unit.size_bytes, dtype=torch.uint8))
        found.append(unit)
    return found


def make_ring(units: list[FlatParams], slots: int) -> PrefetchRing:
    return PrefetchRing(torch.device("cpu"), slots=slots, slot_bytes=units[0].size_bytes)


@pytest.mark.parametrize("slots", [1, 2, 3, 5, COUNT])
def test_weights_are_copied_ahead_in_order_and_each_once(
    units: list[FlatParams], layers: list[nn.Linear], slots: int
) -> None:
    ring = make_ring(units, slots)
    kept = [layer.weight.detach().clone() for layer in layers]
    for at, layer in enumerate(layers):
        ring.acquire(units, at)
        assert torch.equal(layer.weight, kept[at])
        assert ring.copied_bytes == min(at + slots, COUNT) * units[0].size_bytes


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_the_next_step_is_copied_while_one_ends(units: list[FlatParams], slots: int) -> None:
    ring, counts = make_ring(units, slots), [0]
    for _step in range(3):
        for at in range(COUNT):
            ring.acquire(units * 2, at)
        counts.append(ring.copied_bytes // units[0].size_bytes)
    ahead = slots - 1
    assert [later - earlier for earlier, later in pairwise(counts)] == [COUNT + ahead, COUNT, COUNT]


def test_an_interrupted_copy_is_made_again(
    units: list[FlatParams], layers: list[nn.Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slot is half overwritten then, so its old weights must not be found in it."""
    monkeypatch.setattr(prefetch, "STAGE_BYTES", 64)
    ring = make_ring(units, 2)
    ring.acquire(units, 0)
    whole = units[2].storage
    units[2].storage = torch.zeros(100, dtype=torch.uint8)  # its second piece does not fit
    with pytest.raises(RuntimeError):
        ring.acquire(units, 2)
    ring.release()
    units[2].storage = whole
    for at in (0, 1, 2):
        ring.acquire(units, at)
        assert torch.count_nonzero(layers[at].weight) == 64
