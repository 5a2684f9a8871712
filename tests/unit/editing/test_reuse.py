"""Equal requests with an explicit seed share one edit and one stored object."""

import asyncio
import base64
import json
from dataclasses import fields, replace
from typing import Any

import pytest
from support.fakes import PNG, REQUEST, URL, House, Kept, Page, Pause, picture, settle, until
from support.worlds import request, run

from retouch.editing.ports import EditParams, EngineInfo
from retouch.editing.reuse import fingerprint
from retouch.editing.steps import EditorSettings
from retouch.errors import DeadlineExceeded, ModelError, StoreUnavailable
from retouch.schema import EditRequest


def index_keys(house: House) -> list[str]:
    return [key for key in house.store.objects if key.startswith("p/reuse/v1/")]


async def edited(house: House, **changes: Any) -> str:
    """Edit, wait until the index is written, and return the result's key."""
    wanted = len(index_keys(house)) + 1
    key = (await run(house, seed=7, **changes)).result.object_key
    await until(lambda: len(index_keys(house)) == wanted)
    return key


async def test_an_equal_request_gets_a_new_link_to_the_stored_result() -> None:
    house = House()
    first = (await run(house, seed=7)).result
    await until(lambda: index_keys(house))
    again = (await run(house, job_id="job-2", seed=7)).result
    assert again.object_key == first.object_key
    assert again.presigned_url == first.presigned_url
    assert (first.meta.reused, again.meta.reused) == (False, True)
    assert (again.meta.job_id, again.meta.seed, again.meta.notes) == ("job-2", 7, first.meta.notes)
    assert again.meta.timings_ms.denoise == 0
    assert (len(house.engine.edits), len(house.store.results)) == (1, 1)


@pytest.mark.parametrize("seed", [None, -1])
async def test_a_derived_seed_reuses_nothing(seed: int | None) -> None:
    house = House()
    for _ in range(2):
        await run(house, seed=seed)
    assert len(house.engine.edits) == 2
    assert index_keys(house) == []


async def test_reuse_can_be_turned_off() -> None:
    house = House(settings=EditorSettings(prefix="p/", reuse=False))
    for _ in range(2):
        await run(house, seed=7)
    assert len(house.engine.edits) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"prompt": "make colors colder"},
        {"negative_prompt": "grain"},
        {"num_inference_steps": 3},
        {"guidance_scale": 2.0},
        {"scheduler": "UniPC"},
        {"width": 128, "height": 64},
        {"output_format": "jpeg"},
        {"output_quality": 50},
    ],
)
async def test_another_parameter_is_another_edit(changes: dict[str, Any]) -> None:
    house = House()
    await edited(house)
    await run(house, **({"job_id": "job-2", "seed": 7} | changes))
    assert len(house.engine.edits) == 2


async def test_equal_after_defaults_is_equal() -> None:
    house = House()
    await edited(house)
    again = await run(house, seed=7, num_inference_steps=4, guidance_scale=4.0, width=64, height=64)
    assert again.result.meta.reused


async def test_the_contents_of_the_source_count_and_not_its_name() -> None:
    house = House()
    await edited(house)
    data_url = f"data:;base64,{base64.b64encode(PNG).decode()}"
    assert (await run(house, seed=7, image_url=data_url)).result.meta.reused
    house.origin.pages[URL] = Page(picture("red"))
    changed = await run(house, job_id="job-2", seed=7, cache="no-store")
    assert not changed.result.meta.reused


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "other"},
        {"revision": "1"},
        {"dtype": "bfloat16"},
        {"memory_plan": "streamed"},
        {"attention": "fa3"},
        {"compiled": True},
    ],
)
async def test_another_engine_is_another_edit(changes: dict[str, Any]) -> None:
    house = House()
    await edited(house)
    house.engine.info = replace(house.engine.info, **changes)
    assert not (await run(house, job_id="job-2", seed=7)).result.meta.reused


async def test_a_result_made_by_another_precision_than_it_began_with_is_filed_under_it() -> None:
    house = House()
    was = house.engine.info

    def overflow() -> None:
        house.engine.info = replace(was, dtype="bfloat16")

    house.engine.at_end = overflow
    await edited(house)
    assert (await run(house, job_id="job-2", seed=7)).result.meta.reused
    house.engine.info = was
    assert not (await run(house, job_id="job-3", seed=7)).result.meta.reused


async def test_a_hundred_equal_requests_at_once_run_one_edit() -> None:
    house = House()  # with places for 33
    answers = await asyncio.gather(*(run(house, job_id=f"job-{n}", seed=7) for n in range(100)))
    assert len(house.engine.edits) == 1
    assert len({answer.result.object_key for answer in answers}) == 1
    assert sum(answer.result.meta.reused for answer in answers) == 99
    assert {answer.result.meta.job_id for answer in answers} == {f"job-{n}" for n in range(100)}
    assert house.admission.in_progress == 0


async def test_where_the_first_of_equal_requests_fails_the_next_one_edits() -> None:
    house = House()
    pause = Pause()

    def fail_first(step: int) -> None:
        if step == 0 and len(house.engine.edits) == 1:
            pause.hold()
            raise ModelError("once")

    house.engine.at_step = fail_first
    first = asyncio.create_task(run(house, seed=7))
    await pause.reached()
    second = asyncio.create_task(run(house, job_id="job-2", seed=7))
    await until(lambda: house.admission.in_progress == 2)
    pause.release()
    with pytest.raises(ModelError):
        await first
    assert not (await second).result.meta.reused


async def test_one_that_leaves_takes_the_edit_of_no_other() -> None:
    house = House()
    pause = Pause()
    house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    runs = [asyncio.create_task(run(house, job_id=f"job-{n}", seed=7)) for n in range(3)]
    await pause.reached()
    runs[1].cancel()
    await settle()
    pause.release()
    assert not (await runs[0]).result.meta.reused
    assert (await runs[2]).result.meta.reused
    assert runs[1].cancelled()


async def test_one_that_waits_for_an_equal_request_keeps_its_deadline() -> None:
    house = House(settings=EditorSettings(prefix="p/", job_timeout_s=2))
    pause = Pause()
    house.engine.at_step = lambda _: pause.hold()
    first = asyncio.create_task(run(house, seed=7))
    await pause.reached()
    with pytest.raises(DeadlineExceeded, match="equal request"):
        await run(house, job_id="job-2", seed=7)
    pause.release()
    await first


async def test_a_file_is_in_the_answer_of_a_reused_result_too() -> None:
    house = House()
    key = await edited(house)
    again = await run(house, seed=7, response_format="b64_json")
    assert again.result.b64_json == base64.b64encode(house.store.objects[key].body).decode()
    assert again.result.meta.reused


async def test_equal_requests_at_once_for_a_file_run_one_edit_before_the_index_is_there() -> None:
    house, written = House(), Pause()
    put = house.store.put

    def put_late(key: str, *args: Any, **options: Any) -> None:
        if "/reuse/" in key:
            written.hold()
        put(key, *args, **options)

    house.store.put = put_late  # type: ignore[method-assign]
    runs = (run(house, job_id=f"job-{n}", seed=7, response_format="b64_json") for n in range(3))
    answers = await asyncio.gather(*runs)
    written.release()
    await house.editor.close()
    assert len(house.engine.edits) == 1
    assert len({answer.result.b64_json for answer in answers}) == 1


async def test_a_reused_result_has_no_note_about_another_request() -> None:
    house = House()
    await edited(house, num_inference_steps=60)
    notes = (await run(house, seed=7, num_inference_steps=50)).result.meta.notes
    assert notes == ["done"]


async def test_a_reused_result_has_the_geometry_of_its_own_request() -> None:
    house = House()
    house.engine.info = replace(house.engine.info, max_areas_px=(1 << 22,) * 3)
    files = (picture("red", (64, 64)), picture("red", (128, 128)))
    urls = [f"data:;base64,{base64.b64encode(file).decode()}" for file in files]
    images = {"image_url": None, "image_urls": urls}
    await edited(house, **images, size_from="first")
    last = await run(house, seed=7, **images, size_from="last")
    assert last.result.meta.geometry.source == (128, 128)


async def lose_result(house: House, key: str) -> None:
    del house.store.objects[key]


async def damage_result(house: House, key: str) -> None:
    house.store.objects[key] = replace(house.store.objects[key], body=b"cut")


async def damage_index(house: House, _: str) -> None:
    house.store.objects[index_keys(house)[0]] = Kept(b"[]", "application/json", {})


async def age_index(house: House, _: str) -> None:
    [name] = index_keys(house)
    entry = json.loads(house.store.objects[name].body)
    entry["made_at"] -= 86400
    house.store.objects[name] = Kept(json.dumps(entry).encode(), "application/json", {})


async def break_reads(house: House, _: str) -> None:
    house.store.get_fault = StoreUnavailable("down")


@pytest.mark.parametrize(
    "spoil", [lose_result, damage_result, damage_index, age_index, break_reads]
)
async def test_a_result_that_cannot_be_had_or_is_too_old_is_made_again(spoil: Any) -> None:
    house = House()
    await spoil(house, await edited(house))
    assert not (await run(house, job_id="job-2", seed=7)).result.meta.reused
    assert len(house.engine.edits) == 2


async def test_an_index_that_cannot_be_written_costs_only_the_reuse() -> None:
    house = House()
    put = house.store.put

    def put_results(key: str, *args: Any, **options: Any) -> None:
        if "/reuse/" in key:
            raise StoreUnavailable("down")
        put(key, *args, **options)

    house.store.put = put_results  # type: ignore[method-assign]
    await run(house, seed=7)
    await house.editor.close()
    assert index_keys(house) == []


def test_every_field_of_parameters_engine_and_request_is_in_the_fingerprint() -> None:
    house = House()
    params = EditParams("p", "n", 1, 2, 3.0, "Euler", 64, 64)
    info = house.engine.info

    def of(
        params: EditParams = params, info: EngineInfo = info, asked: EditRequest = REQUEST
    ) -> str:
        return fingerprint(asked, params, ["sha"], info)

    for field in fields(EditParams):
        assert of(params=replace(params, **{field.name: "changed"})) != of(), field.name
    for field in fields(EngineInfo):
        is_limit = field.name == "max_areas_px"
        assert (of(info=replace(info, **{field.name: "changed"})) == of()) is is_limit, field.name
    assert of(asked=request(output_quality=5)) != of()
    assert of(asked=request(output_format="jpg")) == of(asked=request(output_format="jpeg")) != of()
    assert of(asked=request(image_url=URL + "&other")) == of()
