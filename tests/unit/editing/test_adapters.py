from dataclasses import replace

import pytest

from retouch.editing.adapters import resolve_adapters
from retouch.editing.ports import AdapterInfo, AppliedAdapter
from retouch.errors import InvalidRequest
from retouch.schema import Lora

WARM = AdapterInfo("warm", "ab" * 32, 60, 16, scale=0.5)
GRAIN = AdapterInfo("grain", "cd" * 32, 20, 256, always=True)
WIDE = AdapterInfo("wide", "ef" * 32, 20, 256)
LOADED = (WARM, GRAIN, WIDE)


def scales(*loras: Lora) -> dict[str, float]:
    return {one.name: one.scale for one in resolve_adapters(loras, LOADED)}


def test_without_a_choice_only_what_is_always_applied_is() -> None:
    assert resolve_adapters([], LOADED) == (AppliedAdapter("grain", 1.0, "cd" * 32, 20),)
    assert resolve_adapters([], ()) == ()


def test_a_request_may_leave_the_scale_to_the_operator_or_give_its_own() -> None:
    assert scales(Lora(name="warm")) == {"grain": 1.0, "warm": 0.5}
    assert scales(Lora(name="warm", scale=-2.0)) == {"grain": 1.0, "warm": -2.0}


def test_a_scale_of_zero_leaves_an_adapter_out() -> None:
    assert scales(Lora(name="grain", scale=0.0), Lora(name="warm", scale=0.0)) == {}


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(InvalidRequest, match="cold is not loaded; LORAS loads: warm, grain, wide"):
        scales(Lora(name="cold"))
    with pytest.raises(InvalidRequest, match="LORAS loads: none"):
        resolve_adapters([Lora(name="cold")], ())


def test_a_merged_adapter_counts_only_where_its_scale_is_another() -> None:
    merged = replace(GRAIN, merged=True)
    loaded = (WARM, merged, WIDE, replace(WIDE, name="more"))
    both = [Lora(name="wide"), Lora(name="more")]
    assert [one.merged for one in resolve_adapters(both, loaded)] == [True, False, False]
    with pytest.raises(InvalidRequest, match="the ranks together are 768"):
        resolve_adapters([*both, Lora(name="grain", scale=0.0)], loaded)


def test_ranks_that_do_not_fit_one_edit_are_refused() -> None:
    assert scales(Lora(name="wide"), Lora(name="warm", scale=0.0)) == {"grain": 1.0, "wide": 1.0}
    with pytest.raises(InvalidRequest, match="the ranks together are 528; at most 512 fit"):
        scales(Lora(name="wide"), Lora(name="warm"))
