from dataclasses import replace

import pytest
from support.fakes import FakeEngine, House
from support.worlds import refused, request, run

from retouch.editing.adapters import resolve_adapters
from retouch.editing.ports import AdapterInfo, ProfileInfo
from retouch.editing.profiles import choose_profile, fix_request
from retouch.errors import InvalidRequest
from retouch.schema import Lora

FAST = ProfileInfo(
    "fast", 8, 1.0, shift=3.0, adapter=AdapterInfo("fast", "ab" * 32, layers=720, rank=64)
)
FULL = ProfileInfo("full", 30, 4.0, is_fixed=False)


def build_house(*profiles: ProfileInfo) -> House:
    engine = FakeEngine()
    engine.info = replace(engine.info, profiles=profiles)
    return House(engine=engine)


def test_without_a_name_the_first_is_used_and_without_profiles_the_checkpoint() -> None:
    info = build_house(FAST, FULL).engine.info
    assert choose_profile(None, info) is FAST
    assert choose_profile("full", info) is FULL
    alone = choose_profile(None, build_house().engine.info)
    assert (alone.name, alone.steps, alone.is_fixed) == ("full", 4, False)


def test_what_a_profile_fixes_is_ignored_in_a_request_with_a_note() -> None:
    asked = request(num_inference_steps=30, guidance_scale=7.5, scheduler="EulerAncestral")
    fixed, notes = fix_request(asked, FAST)
    assert (fixed.num_inference_steps, fixed.guidance_scale, fixed.scheduler) == (8, 1.0, "Euler")
    assert notes == [
        "profile fast has num_inference_steps 8: 30 is ignored",
        "profile fast has guidance_scale 1.0: 7.5 is ignored",
        "profile fast has scheduler Euler: EulerAncestral is ignored",
    ]
    assert fix_request(asked, FULL) == (asked, [])
    assert fix_request(request(num_inference_steps=8), FAST)[1] == []


async def test_an_edit_runs_with_its_profile_and_meta_says_so() -> None:
    house = build_house(FULL, FAST)
    meta = (await run(house, profile="fast", num_inference_steps=30)).result.meta
    (params,) = house.engine.edits
    assert (params.steps, params.guidance_scale, params.shift) == (8, 1.0, 3.0)
    assert (meta.profile, meta.num_inference_steps) == ("fast", 8)
    assert [(one.name, one.scale, one.layers) for one in meta.loras] == [("fast", 1.0, 720)]
    assert "profile fast has num_inference_steps 8: 30 is ignored" in meta.notes


async def test_the_checkpoints_own_profile_leaves_a_request_as_it_is() -> None:
    house = build_house(FULL, FAST)
    meta = (await run(house, num_inference_steps=3)).result.meta
    (params,) = house.engine.edits
    assert (params.steps, params.guidance_scale, params.shift, params.loras) == (3, 4.0, None, ())
    assert meta.profile == "full"


async def test_an_unknown_profile_is_refused_with_the_list() -> None:
    error = await refused(build_house(FULL, FAST), InvalidRequest, profile="slow")
    assert error.details["fields"] == {
        "profile": "slow is not offered; PROFILES offers: full, fast"
    }
    error = await refused(build_house(), InvalidRequest, profile="fast")
    assert error.details["fields"] == {"profile": "fast is not offered; PROFILES offers: full"}


def test_a_profile_counts_against_the_ranks_of_an_edit() -> None:
    wide = AdapterInfo("wide", "cd" * 32, 9, 256)
    wider = AdapterInfo("wider", "ef" * 32, 9, 256)
    with pytest.raises(InvalidRequest, match="the ranks together are 576"):
        resolve_adapters([Lora(name="wide"), Lora(name="wider")], (wide, wider), FAST.adapter)
