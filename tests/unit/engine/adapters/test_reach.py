"""What requests can choose, for each padded rank."""

import pytest

from retouch.editing.ports import AdapterChoice, AdapterInfo, ProfileInfo
from retouch.engine.adapters.reach import find_choices


def adapter(name: str, rank: int, *, always: bool = False, merged: bool = False) -> AdapterInfo:
    return AdapterInfo(name, "", 1, rank, always=always, merged=merged)


def profile(name: str, own: AdapterInfo | None) -> ProfileInfo:
    return ProfileInfo(name, 8, 1.0, adapter=own)


@pytest.mark.parametrize(
    ("adapters", "ranks"),
    [
        ([], {0}),
        ([adapter("a", 4)], {0, 16}),
        ([adapter("a", 64), adapter("b", 64)], {0, 64, 128}),
        ([adapter("a", 64, always=True), adapter("b", 4)], {64, 128, 0, 16}),
        ([adapter("a", 64, always=True, merged=True)], {0, 64}),
        ([adapter("a", 256), adapter("b", 256), adapter("c", 1)], {0, 256, 512, 16}),
        ([adapter(str(n), 16) for n in range(50)], {0, 16, 32, 64}),
    ],
)
def test_every_rank_that_requests_can_reach_has_a_choice(
    adapters: list[AdapterInfo], ranks: set[int]
) -> None:
    assert find_choices(adapters, [], 512).keys() == ranks


def test_the_first_choice_is_the_default_and_profiles_bring_their_own() -> None:
    profiles = [profile("fast", adapter("own", 64)), profile("full", None)]
    assert find_choices([], profiles, 512) == {64: AdapterChoice("fast"), 0: AdapterChoice("full")}


def test_a_rank_over_the_limit_is_no_choice() -> None:
    assert find_choices([adapter("a", 64)], [], 32).keys() == {0}
