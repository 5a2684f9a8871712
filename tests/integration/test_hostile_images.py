"""The first turns of tests/bench/hostile_images.py, and that its judge sees what it looks for."""

import signal

import decoding_costs
import hostile_pictures
import pytest
from decoding import COSTLY, PHOTO

from retouch import decoder

pytestmark = pytest.mark.integration
TURNS = range(4 * len(hostile_pictures.TURNS))
WAIT = "import os; os.write(1, b'\\1'); os.read(0, 8); os.read(0, 1);"


async def test_hostile_pictures_decode_or_are_refused_at_a_bearable_cost() -> None:
    made = ((number, *hostile_pictures.make(1, number)) for number in TURNS)
    with decoding_costs.metered() as decoding:
        outcomes = await decoding_costs.judge_all(decoding, made)
    assert {outcome.attack for outcome in outcomes} == set(hostile_pictures.ATTACKS)
    assert len(outcomes) == len(TURNS)
    assert [outcome for outcome in outcomes if outcome.faults] == []


async def test_a_child_that_crashes_or_costs_too_much_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with decoding_costs.metered() as decoding:
        assert (await decoding_costs.judge(decoding, 0, "", PHOTO)).faults == ()
        monkeypatch.setattr(decoding_costs, "MAX_CPU_S", 0.1)
        monkeypatch.setattr(decoding_costs, "MAX_RSS_BYTES", 500 << 20)
        costly = await decoding_costs.judge(decoding, 1, "", COSTLY)
    assert [fault.split(" ", 1)[1] for fault in costly.faults] == [
        "s of processor time",
        "MiB of memory",
    ]
    crash = f"{WAIT} os.kill(os.getpid(), {signal.SIGSEGV:d})"
    monkeypatch.setattr(decoder, "_ENTRY", crash)
    with decoding_costs.metered() as decoding:
        crashed = await decoding_costs.judge(decoding, 2, "", PHOTO)
    assert crashed.faults == (f"the child died with {-signal.SIGSEGV}",)
