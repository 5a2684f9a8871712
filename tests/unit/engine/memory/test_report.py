import pytest

from retouch.engine.memory import probe
from retouch.engine.memory.estimate import CARDS, estimate_edit_s
from retouch.engine.memory.plan import GIB, EditShape, FreeMemory, Plan, make_plan
from retouch.engine.memory.quantization import Quantization, full_sizes
from retouch.engine.memory.report import describe_plan
from retouch.errors import ModelError


@pytest.mark.parametrize("card", CARDS)
def test_every_card_gets_a_plan_and_an_estimate_that_says_it_is_one(card: str) -> None:
    lines = describe_plan(gpu_gib=None, host_gib=64, card=card)
    assert lines[0].startswith("plan: ")
    choices = [line for line in lines if line.split(":")[0] in {"none", "int8", "fp8", "nf4"}]
    assert len(choices) == 4
    assert all("estimated, not measured" in line for line in choices)


def test_without_a_card_no_seconds_are_guessed() -> None:
    lines = describe_plan(gpu_gib=16, host_gib=64)
    assert not any("estimated" in line for line in lines)


def test_a_choice_that_does_not_fit_says_what_it_lacks() -> None:
    lines = describe_plan(gpu_gib=16, host_gib=30)
    (line,) = (line for line in lines if line.startswith("none:"))
    assert "short of host memory by 13.9 GiB" in line
    assert "QUANTIZATION=auto stores blocks and layers as: int8" in lines


def test_a_local_disk_spares_the_host_the_modulation() -> None:
    local, network = (
        describe_plan(gpu_gib=16, host_gib=30, modulation_mapped=mapped) for mapped in (True, False)
    )
    assert "QUANTIZATION=auto stores blocks and layers as: none, text encoder int8" in local
    assert any(line.startswith("int8: 16.0 GiB of the GPU, 11.5 of the host") for line in local)
    assert any(line.startswith("int8: 16.0 GiB of the GPU, 24.2 of the host") for line in network)
    assert "they are read from their files on a local disk" in local


def test_room_for_large_results_is_planned() -> None:
    usual, large = (
        describe_plan(gpu_gib=16, host_gib=64, max_result_px=px)[0] for px in (0, 2048 * 2048)
    )
    assert (usual, large) == ("plan: 33 of 60 blocks streamed", "plan: 36 of 60 blocks streamed")


def test_what_is_set_is_what_is_planned() -> None:
    with pytest.raises(ModelError, match="short of host memory"):
        describe_plan(gpu_gib=16, host_gib=30, quantization="none")


def test_what_may_be_taken_of_this_host_is_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "measure_host", lambda: 64 * GIB)
    assert describe_plan(gpu_gib=16, host_gib=None) == describe_plan(gpu_gib=16, host_gib=64)
    for said in (30, 90):
        limited = describe_plan(gpu_gib=16, host_gib=None, host_memory_gib=said)
        assert limited == describe_plan(gpu_gib=16, host_gib=min(said, 64))


def test_a_faster_card_takes_less_and_streaming_over_a_slow_bus_more() -> None:
    shape, sizes = EditShape(), full_sizes(Quantization())
    small = make_plan(sizes, shape, FreeMemory(8 * GIB, 64 * GIB))
    large = make_plan(sizes, shape, FreeMemory(80 * GIB, 64 * GIB))

    def seconds(plan: Plan, card: str, *, guided: bool = True) -> float:
        return estimate_edit_s(plan, sizes, shape, CARDS[card], steps=30, guided=guided)

    assert seconds(large, "H100") < seconds(large, "A100") < seconds(large, "A4000")
    assert seconds(small, "L40S") == seconds(large, "L40S"), "two branches hide the copies"
    assert seconds(small, "L40S", guided=False) > seconds(large, "L40S", guided=False)
    assert 15 < seconds(large, "H100") < 30, "20 to 24 s were measured"
