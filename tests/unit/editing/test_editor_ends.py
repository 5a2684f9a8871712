import asyncio
import base64

import pytest
from support.fakes import PNG, PRESET, REQUEST, URL, House, Pause, settle, until
from support.worlds import IN_QUEUE, refused, require_idle, run

from retouch.editing.steps import EditorSettings
from retouch.errors import (
    Cancelled,
    DeadlineExceeded,
    ModelError,
    ModelLost,
    NotReady,
    OutOfMemory,
    SourceStatusError,
    StoreDenied,
    StoreUnavailable,
)
from retouch.schema import Progress


@pytest.mark.parametrize(
    "fault", [OutOfMemory("no memory"), ModelError("broken"), ValueError("bug")]
)
async def test_a_fault_of_the_model_stores_nothing_and_frees_it(fault: Exception) -> None:
    house = House()
    house.engine.fault = fault
    with pytest.raises(type(fault)):
        await run(house)
    assert house.store.results == []
    await require_idle(house)


async def test_a_source_that_fails_stores_nothing_and_does_not_touch_the_model() -> None:
    house = House()
    await refused(house, SourceStatusError, image_url=URL + "&gone")
    assert house.store.objects == {}
    assert house.engine.edits == []
    await require_idle(house)


async def test_a_store_that_fails_is_told() -> None:
    house = House()
    house.store.put_fault = StoreUnavailable("down")
    await refused(house, StoreUnavailable)
    assert house.store.results == []
    await require_idle(house)


async def test_a_store_that_outlasts_its_own_limit_is_given_up() -> None:
    house = House(settings=EditorSettings(store_timeout_s=0.05))
    house.store.is_open.clear()
    error = await refused(house, StoreUnavailable)
    house.store.is_open.set()
    assert error.message == "the object store did not answer in time"


async def test_a_link_that_cannot_be_signed_is_told() -> None:
    house = House()
    house.store.link_fault = StoreDenied("the link cannot be signed")
    await refused(house, StoreDenied)


async def test_the_deadline_holds_while_the_source_is_loaded() -> None:
    house = House(settings=EditorSettings(job_timeout_s=0.02))
    house.origin.is_open.clear()
    error = await refused(house, DeadlineExceeded)
    assert "while its image was loaded" in error.message
    await settle()
    assert house.origin.flying == 0
    assert house.admission.in_progress == 0
    assert house.store.objects == {}


async def test_the_deadline_holds_in_the_queue() -> None:
    house = House()

    def pass_time(told: Progress) -> None:
        if told == IN_QUEUE:
            house.clock.now_s += 599.99

    async with house.admission.acquire_model(timeout_s=1):
        with pytest.raises(DeadlineExceeded, match="waited for the model"):
            await house.editor.run(REQUEST, job_id="j", request_id="r", progress=pass_time)
    assert house.admission.in_progress == 0
    assert house.engine.edits == []
    assert house.store.results == []


@pytest.mark.parametrize("late_step", [0, 2, 4])
async def test_the_deadline_holds_before_every_step(late_step: int) -> None:
    house = House(settings=EditorSettings(prefix="p/", job_timeout_s=600))

    def pass_time(step: int) -> None:
        if step == late_step:
            house.clock.now_s += 600

    house.engine.at_step = pass_time
    error = await refused(house, DeadlineExceeded)
    assert "in the middle of the edit" in error.message
    assert house.engine.steps_taken == late_step
    assert house.store.results == []
    await require_idle(house)


async def test_a_job_that_ends_just_before_its_deadline_is_done() -> None:
    house = House()

    def pass_time(step: int) -> None:
        if step == 4:
            house.clock.now_s += 599.9

    house.engine.at_step = pass_time
    assert (await run(house)).status == "success"
    (_, for_result) = house.store.put_timeouts_s
    assert for_result == pytest.approx(0.1)


@pytest.mark.parametrize("stage", ["queue", "encode", "store"])
async def test_the_deadline_holds_between_steps(stage: str) -> None:
    house = House()

    def pass_time() -> None:
        house.clock.now_s += 600

    def pass_time_in_queue(progress: Progress) -> None:
        if progress.stage == stage == "queue":
            pass_time()

    if stage == "encode":
        house.engine.at_end = pass_time
    if stage == "store":
        house.engine.at_finish = pass_time
    with pytest.raises(DeadlineExceeded, match=r"the job's time ran out$"):
        await house.editor.run(REQUEST, job_id="j", request_id="r", progress=pass_time_in_queue)
    assert house.store.results == []
    house.engine.at_end = house.engine.at_finish = lambda: None
    await require_idle(house)


async def test_the_upload_gets_no_more_than_its_own_limit() -> None:
    house = House(settings=EditorSettings(prefix="p/", store_timeout_s=33))
    await run(house, image_url=f"data:;base64,{base64.b64encode(PNG).decode()}")
    assert house.store.put_timeouts_s == [33]


async def test_a_deadline_over_before_the_load_is_told() -> None:
    house = House(settings=EditorSettings(job_timeout_s=0))
    await refused(house, DeadlineExceeded)
    assert house.origin.asked == []


async def test_a_cancelled_edit_ends_within_a_step_and_the_model_is_free_before_it_is_told() -> (
    None
):
    house = House()
    pause = Pause()
    house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    edit = asyncio.create_task(run(house))
    await pause.reached()
    free_when_told: list[bool] = []
    edit.add_done_callback(lambda _: free_when_told.append(house.engine.running == 0))
    edit.cancel()
    await settle()
    assert not edit.done()  # the step under way goes on
    assert house.admission.in_progress == 1
    pause.release()
    with pytest.raises(asyncio.CancelledError):
        await edit
    await settle()
    assert free_when_told == [True]
    assert house.engine.steps_taken == 1
    assert house.store.results == []
    await require_idle(house)


async def test_cancelling_again_and_again_does_not_free_the_model_early() -> None:
    house = House()
    pause = Pause()
    house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    edit = asyncio.create_task(run(house))
    await pause.reached()
    queued = asyncio.create_task(run(house, job_id="job-2"))
    for _ in range(5):
        edit.cancel()
        await settle()
        assert not edit.done()
        assert house.engine.running == 1
    pause.release()
    with pytest.raises(asyncio.CancelledError):
        await edit
    assert (await queued).status == "success"
    assert house.engine.most_running == 1


async def test_a_cancelled_edit_whose_model_then_fails_is_still_cancelled() -> None:
    house = House()
    pause = Pause()

    def fail(step: int) -> None:
        pause.hold()
        raise OutOfMemory("no memory")

    house.engine.at_step = fail
    edit = asyncio.create_task(run(house))
    await pause.reached()
    edit.cancel()
    pause.release()
    with pytest.raises(asyncio.CancelledError):
        await edit
    await require_idle(house)


async def test_cancelling_in_the_queue_leaves_the_queue() -> None:
    house = House()
    async with house.admission.acquire_model(timeout_s=5):
        told: list[Progress] = []
        edit = asyncio.create_task(
            house.editor.run(REQUEST, job_id="j", request_id="r", progress=told.append)
        )
        await until(lambda: IN_QUEUE in told)
        await settle()
        edit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await edit
    assert house.engine.edits == []
    await require_idle(house)


async def test_cancelling_during_the_load_ends_the_fetch() -> None:
    house = House()
    house.origin.is_open.clear()
    edit = asyncio.create_task(run(house))
    await until(lambda: house.origin.flying)
    edit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await edit
    await settle()
    assert house.origin.flying == 0
    house.origin.is_open.set()
    await require_idle(house)


async def test_cancelling_during_the_encoding_stores_nothing() -> None:
    house = House()
    pause = Pause()
    house.engine.at_finish = pause.hold
    edit = asyncio.create_task(run(house))
    await pause.reached()
    edit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await edit
    pause.release()
    await house.editor.close()
    assert house.store.results == []
    assert house.admission.in_progress == 0


async def test_an_image_that_cannot_be_prepared_leaves_the_model_alone() -> None:
    house = House()
    house.engine.prepare_fault = ModelError("an odd image")
    await refused(house, ModelError)
    assert house.engine.edits == []
    house.engine.prepare_fault = None
    await require_idle(house)


async def test_the_next_edit_is_prepared_while_one_has_the_model() -> None:
    house = House()
    pause = Pause()
    house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    first = asyncio.create_task(run(house))
    await pause.reached()
    second = asyncio.create_task(run(house, job_id="job-2"))
    await until(lambda: house.engine.prepared == 2)
    assert len(house.engine.edits) == 1
    pause.release()
    await first
    await second


def hang(house: House) -> Pause:
    """Have the model stand still in its second step until the pause is released."""
    pause = Pause()
    house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    return pause


HASTY = EditorSettings(prefix="p/", job_timeout_s=0.5, grace_s=0.05)


async def test_a_model_that_hangs_is_lost_after_its_grace() -> None:
    house = House(settings=HASTY)
    pause = hang(house)
    error = await refused(house, DeadlineExceeded)
    assert "did not stop" in error.message
    assert house.lost_models == 1
    await refused(house, ModelLost, job_id="the-next")
    assert house.store.results == []
    pause.release()


async def test_edits_that_wait_for_a_model_that_hangs_are_told_to_come_again() -> None:
    house = House(settings=HASTY)
    pause = hang(house)
    hung = asyncio.create_task(run(house))
    await pause.reached()
    house.clock.now_s += 0.01  # the second came later, and has time left when the first gives up
    waiting = asyncio.create_task(
        house.editor.run(REQUEST, job_id="job-2", request_id="r", progress=lambda _: None)
    )
    results = await asyncio.gather(hung, waiting, return_exceptions=True)
    assert isinstance(results[0], DeadlineExceeded)
    assert isinstance(results[1], ModelLost | DeadlineExceeded)
    pause.release()


async def test_a_cancelled_edit_whose_model_hangs_ends_after_the_grace() -> None:
    house = House(settings=HASTY)
    pause = hang(house)
    edit = asyncio.create_task(run(house))
    await pause.reached()
    edit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await edit
    assert house.lost_models == 1
    pause.release()


async def test_a_model_that_finds_itself_lost_ends_its_process() -> None:
    house = House()
    house.engine.fault = ModelLost("a part of it has ended")
    with pytest.raises(ModelLost):
        await run(house)
    assert house.lost_models == 1
    assert house.store.results == []
    await refused(house, ModelLost)


async def test_a_model_back_within_its_grace_is_not_lost() -> None:
    house = House(settings=EditorSettings(prefix="p/", job_timeout_s=0.9, grace_s=5))
    pause = hang(house)
    edit = asyncio.create_task(run(house))
    await pause.reached()
    house.clock.now_s += 1
    pause.release()
    with pytest.raises(DeadlineExceeded, match="in the middle of the edit"):
        await edit
    assert house.lost_models == 0
    await require_idle(house)


async def test_the_engine_s_own_cancellation_is_an_error_for_its_caller() -> None:
    house = House()
    house.engine.fault = Cancelled("stopped")
    await refused(house, Cancelled)


async def test_the_editor_tells_what_is_loaded() -> None:
    house = House()
    assert house.editor.info is house.engine.info
    assert house.editor.info.preset is PRESET


async def test_closing_lets_the_running_edit_end_and_takes_no_more() -> None:
    house = House()
    pause = hang(house)
    edit = asyncio.create_task(run(house))
    await pause.reached()
    closing = asyncio.create_task(house.editor.close())
    await settle()
    await refused(house, NotReady, job_id="job-2")
    assert not closing.done()
    pause.release()
    assert (await edit).status == "success"
    await closing
