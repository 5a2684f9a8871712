import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image
from support.fakes import PRESET, REQUEST

from retouch.editing.params import derive_seed, fit_size, resolve_params, round_size
from retouch.editing.ports import EditParams, GenerationDefaults, Source
from retouch.editing.source_set import SourceSet
from retouch.schema import SCHEDULERS, EditRequest

SOURCE = Source(
    content_sha256="cd" * 32,
    id="ab" * 32,
    image=Image.new("RGB", (8, 8)),
    width_px=1600,
    height_px=1200,
    format="jpeg",
    size_bytes=9,
)
DEMO = GenerationDefaults(steps=8, guidance_scale=1.0, area_px=512 * 512, guided=False)


def plan(
    preset: GenerationDefaults = PRESET,
    *,
    source: Source = SOURCE,
    more: Sequence[Source] = (),
    job_id: str = "j-1",
    max_px: float = 1 << 22,
    **changes: Any,
) -> tuple[EditParams, list[str]]:
    request = EditRequest.model_validate(REQUEST.model_dump(exclude_unset=True) | changes)
    return resolve_params(request, SourceSet((source, *more)), preset, job_id=job_id, max_px=max_px)


def test_what_a_request_leaves_open_comes_from_the_checkpoint_and_the_job() -> None:
    work, notes = plan(GenerationDefaults(steps=30, guidance_scale=4.0, area_px=1024 * 1024))
    assert work == EditParams(
        prompt="make colors warmer",
        negative_prompt=" ",
        seed=derive_seed("j-1"),
        steps=30,
        guidance_scale=4.0,
        scheduler="Euler",
        width_px=1184,
        height_px=896,
    )
    assert notes == []


def test_what_a_request_says_wins() -> None:
    work, notes = plan(
        prompt="  warmer\n",
        negative_prompt=" grain ",
        seed=7,
        num_inference_steps=12,
        guidance_scale=2.5,
        scheduler="UniPC",
        width=512,
        height=768,
        output_format="jpeg",
        output_quality=80,
    )
    assert work == EditParams("warmer", "grain", 7, 12, 2.5, "UniPC", 512, 768)
    assert notes == []


def test_a_negative_prompt_that_does_nothing_is_noted() -> None:
    said = "there is no guidance: negative_prompt is ignored"
    assert plan(guidance_scale=1.0, negative_prompt="grain")[1] == [said]
    assert plan(DEMO, negative_prompt="grain")[1] == [said]
    assert plan(guidance_scale=1.0, negative_prompt=" ")[1] == []
    assert plan(guidance_scale=1.1, negative_prompt="grain")[1] == []


@pytest.mark.parametrize("empty", [None, "", "  \n"])
def test_no_negative_prompt_means_one_space(empty: str | None) -> None:
    assert plan(negative_prompt=empty)[0].negative_prompt == " "


@pytest.mark.parametrize("seed", [None, -1])
def test_a_seed_left_open_is_the_job_s_own_every_time(seed: int | None) -> None:
    first, again = plan(seed=seed)[0].seed, plan(seed=seed)[0].seed
    assert first == again == derive_seed("j-1")
    assert plan(seed=seed, job_id="j-2")[0].seed != first


def test_zero_is_a_seed_like_any_other() -> None:
    assert plan(seed=0)[0].seed == 0


def test_a_derived_seed_is_within_the_contract_and_stays_what_it_is() -> None:
    seeds = [derive_seed(str(n)) for n in range(1000)]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert len(set(seeds)) == 1000
    assert derive_seed("a") == int(hashlib.sha256(b"a").hexdigest()[:8], 16)


def test_steps_beyond_the_cap_are_cut_and_said_so() -> None:
    work, notes = plan(num_inference_steps=51)
    assert work.steps == 50
    assert notes == ["num_inference_steps 51 is cut to 50"]
    assert plan(num_inference_steps=50)[1] == []


def test_guidance_on_weights_without_it_is_one_and_said_so() -> None:
    work, notes = plan(DEMO, guidance_scale=7.5)
    assert work.guidance_scale == 1.0
    assert notes == ["this checkpoint has no guidance: guidance_scale is 1.0"]


def test_nobody_is_told_about_guidance_that_was_not_asked_for() -> None:
    assert plan(DEMO)[1] == plan(DEMO, guidance_scale=1.0)[1] == []


def test_quality_for_png_is_ignored_and_said_so_only_where_it_was_given() -> None:
    assert plan(output_quality=95)[1] == ["png is lossless: output_quality is ignored"]
    assert plan(output_format="webp", output_quality=95)[1] == []


def test_the_source_s_notes_come_first() -> None:
    source = replace(SOURCE, notes=("an older copy",))
    assert plan(source=source, output_quality=9)[1][0] == "an older copy"


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_scheduler_is_passed_on(scheduler: str) -> None:
    assert plan(scheduler=scheduler)[0].scheduler == scheduler


@pytest.mark.parametrize(
    ("source_px", "size_px"),
    [
        ((1024, 1024), (1040, 1040)),
        ((10, 10), (1040, 1040)),
        ((6000, 4000), (1248, 832)),
        ((1200, 1500), (896, 1120)),
        ((2000, 1000), (1472, 736)),
        ((2560, 1600), (1280, 800)),
    ],
)
def test_the_size_has_exactly_the_sources_shape_where_one_does(
    source_px: tuple[int, int], size_px: tuple[int, int]
) -> None:
    assert fit_size(*source_px, area_px=1024 * 1024) == size_px


@pytest.mark.parametrize(
    ("source_px", "size_px"),
    [
        ((4000, 3000), (1184, 896)),
        ((3000, 4000), (896, 1184)),
        ((1920, 1080), (1376, 768)),
        ((1023, 1024), (1024, 1024)),
    ],
)
def test_the_size_is_rounded_as_in_the_stock_pipelines_where_none_has_the_shape(
    source_px: tuple[int, int], size_px: tuple[int, int]
) -> None:
    assert fit_size(*source_px, area_px=1024 * 1024) == size_px


def test_an_exact_size_is_the_largest_within_a_twentieth_of_the_area() -> None:
    area_px = 1024 * 1024
    for wide, high in itertools.product(range(1, 40), repeat=2):
        exact = [
            (16 * side, 16 * side * high // wide)
            for side in range(1, 500)
            if side * high % wide == 0 and 0.95 <= 256 * side * side * high / wide / area_px <= 1.05
        ]
        found = fit_size(3 * wide, 3 * high, area_px=area_px)
        assert found == (exact[-1] if exact else round_size(wide, high, area_px=area_px))


def test_an_exact_size_is_within_what_is_loaded() -> None:
    assert fit_size(9, 9, area_px=1024 * 1024, max_px=1024 * 1024) == (1024, 1024)
    work, _ = plan(DEMO, source=replace(SOURCE, width_px=9, height_px=9), max_px=500 * 500)
    assert (work.width_px, work.height_px) == (512, 512)


@pytest.mark.parametrize("ratio", [0.001, 0.05, 0.3, 1, 2.35, 20, 1000])
@pytest.mark.parametrize("area_px", [64 * 64, 512 * 512, 1024 * 1024])
def test_any_shape_gives_whole_multiples_of_16(ratio: float, area_px: int) -> None:
    width, height = fit_size(round(1000 * ratio), 1000, area_px=area_px)
    assert width % 16 == height % 16 == 0
    assert min(width, height) >= 16


@pytest.mark.parametrize(("size_from", "wider"), [({}, False), ({"size_from": "first"}, True)])
def test_the_result_has_the_shape_of_the_last_image_or_of_the_first(
    size_from: dict[str, str], *, wider: bool
) -> None:
    tall = replace(SOURCE, width_px=600, height_px=800)
    work, _ = plan(DEMO, more=[tall], **size_from)
    assert (work.width_px > work.height_px) is wider


def test_the_notes_on_several_images_say_which() -> None:
    noted = replace(SOURCE, notes=("was put on white",))
    assert plan(source=SOURCE, more=[noted])[1] == ["picture 2: was put on white"]
