"""Several results of one request: seeds, keys, progress, and what is left of one that fails."""

import asyncio
import base64
from typing import Any

import pytest
from support.fakes import House, Pause, until
from support.worlds import refused, request, require_idle, run

from retouch.editing.steps import EditorSettings
from retouch.errors import DeadlineExceeded, EditError, ModelError, StorageError, StoreUnavailable
from retouch.schema import EditResult, Progress, Result


def names(results: list[Result]) -> list[str]:
    return [result.object_key.rpartition("/")[2] for result in results]


def fail_at(house: House, number: int, fault: EditError) -> None:
    """Have the model fail at the end of the `number`-th edit from now, counted from 1."""
    before = len(house.engine.edits)

    def fail() -> None:
        if len(house.engine.edits) - before == number:
            raise fault

    house.engine.at_end = fail


async def test_each_result_is_that_of_a_request_with_its_seed() -> None:
    house = House(settings=EditorSettings(prefix="p/", reuse=False))
    answer = await run(house, job_id="job", seed=2**32 - 2, num_images=4)
    seeds = [2**32 - 2, 2**32 - 1, 0, 1]
    assert answer.results is not None
    assert answer.results[0] == answer.result
    assert [result.meta.seed for result in answer.results] == seeds
    assert names(answer.results) == ["job.png", "job-1.png", "job-2.png", "job-3.png"]
    for result, seed in zip(answer.results, seeds, strict=True):
        alone = await run(house, job_id="alone", seed=seed)
        assert alone.results is None
        objects = house.store.objects
        assert objects[result.object_key].body == objects[alone.result.object_key].body


async def test_the_conditioning_is_computed_once_and_prepared_once() -> None:
    house = House()
    await run(house, num_images=4)
    assert (house.engine.prepared, house.engine.conditioned, len(house.engine.edits)) == (1, 1, 4)


async def test_without_a_seed_a_retried_job_makes_the_same_results() -> None:
    house = House()
    first, again = [await run(house, num_images=2) for _ in range(2)]
    assert [one.meta.seed for one in first.all] == [one.meta.seed for one in again.all]
    assert first.all[1].meta.seed == first.all[0].meta.seed + 1


async def test_progress_counts_the_steps_of_all_results() -> None:
    house = House()
    seen: list[Progress] = []
    await house.editor.run(
        request(num_images=2, num_inference_steps=2),
        job_id="job",
        request_id="r",
        progress=seen.append,
    )
    assert [(one.stage, one.step, one.steps) for one in seen[2:]] == [
        ("condition", 0, 4),
        *(("denoise", step, 4) for step in (0, 1, 2, 2, 3)),
        ("vae_decode", 4, 4),
        ("store", 0, 0),
    ]


async def test_they_take_one_place_and_the_model_once() -> None:
    house = House(max_queue=0)
    pause = Pause()
    house.engine.at_step = lambda _: pause.hold() if len(house.engine.edits) == 2 else None
    both = asyncio.create_task(run(house, num_images=2))
    await pause.reached()
    assert (house.admission.in_progress, house.admission.running) == (1, 1)
    pause.release()
    await both
    await require_idle(house)


async def test_a_result_is_stored_while_the_next_one_is_made() -> None:
    house = House()
    pause = Pause()
    house.engine.at_step = lambda _: pause.hold() if len(house.engine.edits) == 2 else None
    both = asyncio.create_task(run(house, num_images=2))
    await pause.reached()
    await until(lambda: len(house.store.results) == 1)
    pause.release()
    await both


async def test_each_result_has_timings_of_its_own_and_the_shared_ones() -> None:
    answer = await run(House(), num_images=2)
    for result in answer.all:
        assert result.meta.timings_ms.denoise == 2.0
    assert answer.sum_timings()["denoise"] == 4.0
    assert answer.sum_timings()["total"] == answer.result.meta.timings_ms.total


async def test_an_answer_may_contain_every_file() -> None:
    house = House()
    answer = await run(house, num_images=2, response_format="b64_json")
    for result in answer.all:
        assert (
            result.b64_json
            == base64.b64encode(house.store.objects[result.object_key].body).decode()
        )


# --- failures ----------------------------------------------------------------------------------


async def test_a_later_failure_lists_the_results_that_are_stored() -> None:
    house = House()
    fail_at(house, 3, ModelError("it went wrong"))
    error = await refused(
        house, ModelError, job_id="job", seed=7, num_images=4, response_format="b64_json"
    )
    results = error.details["results"]
    assert names(results) == ["job.png", "job-1.png"]
    assert [one.meta.seed for one in results] == [7, 8]
    for one in results:
        assert one.object_key in house.store.objects
        assert one.presigned_url.startswith("https://store.example/")
        assert one.b64_json is None
    assert len(house.engine.edits) == 3
    house.engine.at_end = lambda: None
    await require_idle(house)


async def test_a_failure_of_the_first_lists_none() -> None:
    house = House()
    fail_at(house, 1, ModelError("it went wrong"))
    assert "results" not in (await refused(house, ModelError, num_images=2)).details


async def test_one_that_cannot_be_stored_is_the_error_and_the_others_are_listed() -> None:
    house = House()
    put = house.store.put

    def put_others(key: str, *args: Any, **options: Any) -> None:
        if key.endswith("-1.png"):
            raise StoreUnavailable("down")
        put(key, *args, **options)

    house.store.put = put_others  # type: ignore[method-assign]
    error = await refused(house, StoreUnavailable, job_id="job", num_images=3)
    assert names(error.details["results"]) == ["job.png", "job-2.png"]


async def test_one_deadline_holds_for_all() -> None:
    house = House(settings=EditorSettings(prefix="p/", job_timeout_s=10))
    results = house.store.results

    def pass_time() -> None:
        if len(house.engine.edits) == 2:
            house.clock.now_s += 11

    house.engine.at_end = pass_time
    pause = Pause()
    house.engine.at_step = lambda _: pause.hold() if len(house.engine.edits) == 2 else None
    edit = asyncio.create_task(refused(house, DeadlineExceeded, job_id="job", num_images=3))
    await pause.reached()
    await until(lambda: house.store.results != results)
    pause.release()
    error = await edit
    assert names(error.details["results"]) == ["job.png"]
    assert len(house.engine.edits) == 3
    assert house.engine.steps_taken == 2 * 4


async def test_a_cancellation_ends_all_within_a_step() -> None:
    house = House()
    pause = Pause()
    house.engine.at_step = lambda _: pause.hold() if len(house.engine.edits) == 2 else None
    edit = asyncio.create_task(run(house, num_images=3))
    await pause.reached()
    edit.cancel()
    pause.release()
    with pytest.raises(asyncio.CancelledError):
        await edit
    assert len(house.engine.edits) == 2
    await require_idle(house)


# --- found again -------------------------------------------------------------------------------


async def find(house: House, **changes: Any) -> EditResult | None:
    return await house.find(request(**changes), job_id="job", request_id="r")


async def test_a_retry_finds_each_result_by_a_get_of_its_own() -> None:
    house = House()
    first = await run(house, job_id="job", num_images=3)
    house.store.gets.clear()
    again = await find(house, num_images=3)
    assert again is not None
    assert names(again.all) == names(first.all)
    assert sorted(house.store.gets) == sorted(one.object_key for one in first.all)
    assert await find(house, num_images=4) is None


async def test_a_retry_makes_only_what_is_missing() -> None:
    house = House()
    first = await run(house, job_id="job", num_images=3)
    lost = first.all[1]
    body = house.store.objects.pop(lost.object_key).body
    asked = request(num_images=3)
    found = await house.editor.find(asked, job_id="job", request_id="r")
    seen: list[Progress] = []
    again = await house.editor.run(
        asked, job_id="job", request_id="r", found=found, progress=seen.append
    )
    assert names(again.all) == names(first.all)
    assert [one.meta.seed for one in again.all] == [one.meta.seed for one in first.all]
    assert len(house.engine.edits) == 4
    assert house.store.objects[lost.object_key].body == body
    assert max(one.steps for one in seen) == 4


async def test_what_was_found_is_listed_where_the_rest_fails() -> None:
    house = House()
    await run(house, job_id="job", num_images=2)
    asked = request(num_images=4)
    found = await house.editor.find(asked, job_id="job", request_id="r")
    fail_at(house, 2, ModelError("it went wrong"))
    with pytest.raises(ModelError) as caught:
        await house.editor.run(asked, job_id="job", request_id="r", found=found)
    assert names(caught.value.details["results"]) == ["job.png", "job-1.png", "job-2.png"]


async def test_equal_requests_share_all_results_and_another_number_is_another_edit() -> None:
    house = House()
    first = await run(house, seed=7, num_images=2)
    await until(lambda: any(key.startswith("p/reuse/") for key in house.store.objects))
    again = await run(house, job_id="job-2", seed=7, num_images=2)
    assert [one.object_key for one in again.all] == [one.object_key for one in first.all]
    assert all(one.meta.reused for one in again.all)
    assert len(house.engine.edits) == 2
    more = await run(house, job_id="job-3", seed=7, num_images=3)
    assert not any(one.meta.reused for one in more.all)


async def test_a_lost_result_means_all_are_made_again() -> None:
    house = House()
    first = await run(house, seed=7, num_images=2)
    await until(lambda: any(key.startswith("p/reuse/") for key in house.store.objects))
    del house.store.objects[first.all[1].object_key]
    file = {"response_format": "b64_json"}  # the process itself remembers the links only
    again = await run(house, job_id="job-2", seed=7, num_images=2, **file)
    assert not any(one.meta.reused for one in again.all)


async def test_a_store_that_fails_for_all_is_the_error_alone() -> None:
    house = House()
    house.store.put_fault = StorageError("full")
    assert "results" not in (await refused(house, StorageError, num_images=2)).details
