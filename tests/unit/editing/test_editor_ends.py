import asyncio
import base64
import threading
from collections.abc import Callable

import pytest
from support.fakes import PNG, PRESET, REQUEST, URL, Clock, House, Pause, settle, until
from support.worlds import IN_QUEUE, refused, require_idle, run

from retouch.editing.editor import Editor, EditorSettings
from retouch.errors import (
    Cancelled,
    DeadlineExceeded,
    ModelError,
    OutOfMemory,
    SourceStatusError,
    StorageError,
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


async def test_a_link_that_cannot_be_signed_is_told() -> None:
    house = House(settings=EditorSettings(prefix="p/", link_expires_in_s=604801))
    await refused(house, StorageError)


async def test_the_deadline_holds_while_the_source_is_loaded() -> None:
    house = House(settings=EditorSettings(job_timeout_s=0.02))
    house.origin.is_open.clear()
    error = await refused(house, DeadlineExceeded)
    assert "while its image was loaded" in error.message
    await settle()
    assert house.origin.flying == 0
    assert house.admission.inside == 0
    assert house.store.objects == {}


async def test_the_deadline_holds_in_the_queue() -> None:
    house = House()

    def pass_time(told: Progress) -> None:
        if told == IN_QUEUE:
            house.clock.now_s += 599.99

    async with house.admission.turn(timeout_s=1):
        with pytest.raises(DeadlineExceeded, match="waited for the model"):
            await house.editor.run(REQUEST, job_id="j", request_id="r", progress=pass_time)
    assert house.admission.inside == 0
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


class ThreadClock(Clock):
    """A clock that does something when the result's thread looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0
        self.at_look: Callable[[int], None] = lambda _: None

    def __call__(self) -> float:
        if threading.current_thread().name.startswith("result"):
            self.looks += 1
            self.at_look(self.looks)
        return self.now_s


@pytest.mark.parametrize("late_look", [1, 2])  # before the encoding, after it
async def test_the_deadline_holds_before_the_upload(late_look: int) -> None:
    clock = ThreadClock()
    house = House(clock=clock)

    def pass_time(look: int) -> None:
        if look == late_look:
            clock.now_s += 600

    clock.at_look = pass_time
    error = await refused(house, DeadlineExceeded)
    assert error.message == "the job's time ran out"
    assert house.store.results == []
    clock.at_look = lambda _: None
    await require_idle(house)


async def test_the_upload_gets_no_more_than_its_own_limit() -> None:
    house = House(settings=EditorSettings(prefix="p/", store_timeout_s=33))
    await run(house, image_url=f"data:;base64,{base64.b64encode(PNG).decode()}")
    assert house.store.put_timeouts_s == [33]


async def test_a_deadline_over_before_the_load_is_told() -> None:
    house = House()
    ticks = iter([1000.0])  # the first look; every later one is past the deadline
    house.editor = Editor(
        sources=house.editor._sources,  # noqa: SLF001 - the same, under another clock
        engine=house.engine,
        store=house.store,
        admission=house.admission,
        settings=EditorSettings(),
        clock=lambda: next(ticks, 9999.0),
    )
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
    assert house.admission.inside == 1
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
    async with house.admission.turn(timeout_s=5):
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
    clock = ThreadClock()
    house = House(clock=clock)
    pause = Pause()
    clock.at_look = lambda look: pause.hold() if look == 1 else None
    edit = asyncio.create_task(run(house))
    await pause.reached()
    edit.cancel()
    with pytest.raises(asyncio.CancelledError):
        await edit
    pause.release()
    await asyncio.to_thread(house.editor.close)
    assert house.store.results == []
    assert house.admission.inside == 0


async def test_the_engine_s_own_cancellation_is_an_error_for_its_caller() -> None:
    house = House()
    house.engine.fault = Cancelled("stopped")
    await refused(house, Cancelled)


async def test_the_editor_tells_what_is_loaded() -> None:
    house = House()
    assert house.editor.info is house.engine.info
    assert house.editor.info.preset is PRESET


async def test_closing_lets_work_end_and_takes_no_more() -> None:
    house = House()
    await run(house)
    house.editor.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        await run(house, job_id="job-2")
