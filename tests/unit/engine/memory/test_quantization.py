import pytest

from retouch.engine.memory.plan import GIB, EditShape, FreeMemory, Plan
from retouch.engine.memory.quantization import (
    BY_QUALITY,
    UNQUANTIZED,
    Quantization,
    choose_quantization,
    full_sizes,
    list_choices,
)
from retouch.errors import ModelError


def choose(setting: str, *, gpu_gib: float, host_gib: float) -> tuple[str, Plan]:
    memory = FreeMemory(int(gpu_gib * GIB), int(host_gib * GIB))
    choice, plan = choose_quantization(setting, full_sizes, EditShape(), memory)
    assert plan.quantization == choice.name
    return choice.name, plan


@pytest.mark.parametrize(
    ("gpu_gib", "host_gib", "name"),
    [
        (80, 8, "none"),
        (48, 24, "none"),
        (16, 64, "none"),
        (16, 40, "none, text encoder int8"),
        (16, 32, "int8"),
        (24, 24, "int8"),
        (16, 24, "int8, text encoder nf4"),
        (10, 24, "nf4"),
    ],
)
def test_auto_takes_the_best_that_fits_gpu_and_host(
    gpu_gib: float, host_gib: float, name: str
) -> None:
    assert choose("auto", gpu_gib=gpu_gib, host_gib=host_gib)[0] == name


@pytest.mark.parametrize("setting", ["none", "int8", "fp8", "nf4"])
def test_a_name_is_taken_for_both_parts_or_refused(setting: str) -> None:
    assert choose(setting, gpu_gib=80, host_gib=64)[0] == setting
    with pytest.raises(ModelError, match="short of GPU memory by"):
        choose(setting, gpu_gib=1, host_gib=64)


def test_where_nothing_fits_the_shortfall_is_that_of_the_smallest() -> None:
    with pytest.raises(ModelError) as smallest:
        choose("nf4", gpu_gib=3, host_gib=9)
    with pytest.raises(ModelError) as caught:
        choose("auto", gpu_gib=3, host_gib=9)
    assert caught.value.message == smallest.value.message


def test_auto_tries_smaller_and_smaller_choices() -> None:
    totals = [full_sizes(choice).total for choice in BY_QUALITY]
    assert totals == sorted(set(totals), reverse=True)
    assert list_choices("auto")[0] == UNQUANTIZED
    assert list_choices("fp8") == (Quantization("fp8", "fp8"),)


def test_with_auto_a_part_stays_as_its_file_has_it() -> None:
    names = [choice.name for choice in list_choices("auto", {"transformer": "Q4_K (file)"})]
    assert names == [
        "Q4_K (file), text encoder none",
        "Q4_K (file), text encoder int8",
        "Q4_K (file), text encoder nf4",
    ]
    both = {"transformer": "Q4_K (file)", "text_encoder": "fp8 (file)"}
    assert [choice.name for choice in list_choices("auto", both)] == [
        "Q4_K (file), text encoder fp8 (file)"
    ]
    assert list_choices("int8", both) == (Quantization("int8", "int8"),)


@pytest.mark.parametrize(
    ("setting", "gpu_gib", "resident"), [("int8", 16, 50), ("int8", 14.9, 44), ("nf4", 10, 44)]
)
def test_packed_blocks_stay_on_small_cards(setting: str, gpu_gib: float, resident: int) -> None:
    _, plan = choose(setting, gpu_gib=gpu_gib, host_gib=32)
    assert 60 - len(plan.streamed_blocks) >= resident
    assert plan.peak_bytes <= gpu_gib * GIB


def test_int8_stays_whole_on_24_gib() -> None:
    _, plan = choose("int8", gpu_gib=23.5, host_gib=32)
    assert not plan.streamed_blocks
    assert not plan.streamed_layers
