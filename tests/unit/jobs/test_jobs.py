"""Jobs of two replicas on one store."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.fakes import PATIENCE_S, REQUEST, FakeStore, Pause, until
from support.replicas import CALLER, FakeReceiver, Replica
from support.worlds import request

from retouch.errors import (
    InvalidRequest,
    JobConflict,
    JobNotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    StoreUnavailable,
)
from retouch.jobs.attempts import find_last
from retouch.jobs.live import Caller
from retouch.jobs.records import Accepted, Records, derive_id
from retouch.schema import EditResult, ErrorBody, Job
from retouch.storage.port import Store, StoredObject


def code(job: Job) -> str:
    assert isinstance(job.answer, ErrorBody)
    return job.answer.error.details.code


def objects(store: FakeStore, name: str) -> list[str]:
    return [key for key in store.objects if key.startswith("p/jobs/") and key.endswith(name)]


async def test_a_job_is_queued_then_completed_with_the_answer_of_an_edit() -> None:
    replica = Replica(FakeStore())
    job = await replica.jobs.accept(REQUEST, "a", CALLER)
    assert (job.id, job.state, job.answer, job.request_id) == ("a", "queued", None, "r-1")
    ended = await replica.jobs.wait("a", "")
    assert (ended.state, ended.progress) == ("completed", None)
    assert isinstance(ended.answer, EditResult)
    assert ended.answer.result.object_key.endswith("/a.png")
    assert ended.ended_at
    assert ended.ended_at >= job.created_at


async def test_every_object_of_a_job_is_written_once() -> None:
    store = FakeStore()
    replica = Replica(store)
    await replica.jobs.accept(REQUEST, "a", CALLER)
    await replica.jobs.wait("a", "")
    records = [key for key in store.puts if "/jobs/" in key]
    assert len(records) == len(set(records))
    assert {key for key in records if "/alive/" not in key} == {
        "p/jobs/a/accepted",
        "p/jobs/a/ended",
    }
    assert not any(b"warmer" in store.objects[key].body for key in records)


async def test_jobs_that_begin_together_write_one_heartbeat() -> None:
    store = FakeStore()
    replica = Replica(store, beat_s=86400.0)
    await asyncio.gather(*(replica.jobs.accept(REQUEST, f"a{n}", CALLER) for n in range(20)))
    assert len([key for key in store.puts if "/alive/" in key]) == 1


class SlowReads(FakeStore):
    """A store that answers no read until `may_read` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_read = threading.Event()
        self.may_read.set()

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:
        self.may_read.wait()
        return super().get(key, max_bytes=max_bytes, timeout_s=timeout_s)


async def test_heartbeats_go_on_while_all_other_calls_of_the_store_are_slow() -> None:
    store, pause = SlowReads(), Pause()
    replica = Replica(store, beat_s=0.1)
    replica.house.engine.at_step = lambda _: pause.hold()
    await replica.jobs.accept(REQUEST, "a", CALLER)
    store.may_read.clear()
    reads = [asyncio.create_task(replica.jobs.get(f"b{n}", "")) for n in range(20)]
    try:
        written = {key for key in store.puts if "/alive/" in key}
        await until(lambda: len({key for key in store.puts if "/alive/" in key} - written) >= 3)
    finally:
        store.may_read.set()
        pause.release()
    await asyncio.gather(*reads, return_exceptions=True)
    assert (await replica.jobs.wait("a", "")).answer


class LateRecords(Records):
    """Accepts the job `b` at the moment when a process that has no more work ends its reads."""

    def __init__(self, store: Callable[[], Store], *, prefix: str) -> None:
        super().__init__(store, prefix=prefix)
        self._are_over = asyncio.Event()

    async def read(self, name: str) -> dict[str, Any] | None:
        if not name.endswith("/cancel"):
            return await super().read(name)
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            self._are_over.set()

    async def accept(self, accepted: Accepted) -> None:
        await super().accept(accepted)
        if accepted.id == "b":
            await self._are_over.wait()


async def test_a_job_that_begins_as_the_heartbeats_of_another_end_has_its_own() -> None:
    store, pause = FakeStore(), Pause()
    replica = Replica(store, beat_s=0.2, records=LateRecords)
    await replica.jobs.accept(REQUEST, "a", CALLER)
    await replica.jobs.wait("a", "")
    replica.house.engine.at_step = lambda _: pause.hold()
    await replica.jobs.accept(request(seed=2), "b", CALLER)
    written = {key for key in store.puts if "/alive/" in key}
    try:
        await until(lambda: len({key for key in store.puts if "/alive/" in key} - written) >= 2)
    finally:
        pause.release()
    assert (await replica.jobs.wait("b", "")).answer


async def test_another_replica_answers_with_the_same_end_and_a_new_link() -> None:
    store = FakeStore()
    one, two = Replica(store), Replica(store, link_expires_in_s=60)
    await one.jobs.accept(REQUEST, "a", CALLER)
    mine, other = await one.jobs.wait("a", ""), await two.jobs.get("a", "")
    assert isinstance(mine.answer, EditResult)
    assert isinstance(other.answer, EditResult)
    assert other.answer.result.meta == mine.answer.result.meta
    assert other.answer.result.presigned_url.endswith("?for=60")
    assert other.answer.result.expires_in == 60


async def test_another_replica_sees_the_progress_of_the_last_heartbeat() -> None:
    store = FakeStore()
    one, two = Replica(store), Replica(store)
    pause = Pause()
    one.house.engine.at_step = lambda step: pause.hold() if step == 2 else None
    await one.jobs.accept(REQUEST, "a", CALLER)
    await pause.reached()
    async for job in two.jobs.watch("a", ""):
        if job.progress and job.progress.stage == "denoise":
            break
    assert (job.state, job.progress.steps) == ("running", 4)
    pause.release()
    assert (await two.jobs.wait("a", "")).state == "completed"


async def test_a_replica_that_has_closed_still_answers_who_waits_for_a_job_of_another() -> None:
    store, pause = FakeStore(), Pause()
    one, two = Replica(store), Replica(store)
    one.house.engine.at_step = lambda _: pause.hold()
    await one.jobs.accept(REQUEST, "a", CALLER)
    waiting = asyncio.create_task(two.jobs.wait("a", ""))
    await two.jobs.close()
    pause.release()
    assert (await waiting).state == "completed"


def test_jobs_are_closed_although_their_event_loop_has_ended() -> None:
    async def begin() -> Replica:
        replica = Replica(FakeStore(), receiver=FakeReceiver())
        replica.jobs.start()
        await replica.jobs.accept(REQUEST, "a", CALLER)
        await replica.jobs.wait("a", "")
        return replica

    asyncio.run(asyncio.run(begin()).jobs.close())


async def test_a_failed_edit_is_a_failed_job_with_its_error() -> None:
    replica = Replica(FakeStore())
    replica.house.engine.fault = OutOfMemory("too large")
    await replica.jobs.accept(REQUEST, "a", CALLER)
    job = await replica.jobs.wait("a", "")
    assert (job.state, code(job)) == ("failed", "out_of_memory")


@pytest.mark.parametrize("through", [0, 1])
async def test_a_job_is_cancelled_through_any_replica(through: int) -> None:
    store = FakeStore()
    replicas = Replica(store), Replica(store)
    replicas[0].house.engine.stay_at = 1
    await replicas[0].jobs.accept(REQUEST, "a", CALLER)
    await until(lambda: replicas[0].house.engine.steps_taken == 1)
    await replicas[through].jobs.cancel("a", "")
    job = await replicas[through].jobs.wait("a", "")
    assert (job.state, code(job)) == ("cancelled", "cancelled")
    assert replicas[0].house.engine.steps_taken == 1
    assert store.results == []


async def test_a_job_that_has_ended_stays_as_it_is_when_it_is_cancelled() -> None:
    replica = Replica(FakeStore())
    await replica.jobs.accept(REQUEST, "a", CALLER)
    await replica.jobs.wait("a", "")
    assert (await replica.jobs.cancel("a", "")).state == "completed"


async def test_the_job_of_a_process_that_died_is_lost_and_may_be_retried() -> None:
    store = FakeStore()
    one, two = Replica(store, beat_s=0.02), Replica(store, beat_s=0.02)
    pause = Pause()
    one.house.engine.at_step = lambda _: pause.hold()
    await one.jobs.accept(REQUEST, "a", CALLER)
    await pause.reached()
    dead = {key: store.objects[key] for key in objects(store, "accepted")}
    pause.release()
    await one.jobs.wait("a", "")
    store.objects = dead  # what a process leaves that died in the middle, and no heartbeat for long
    job = await two.jobs.get("a", "")
    assert (job.state, code(job), job.ended_at) == ("failed", "worker_lost", None)
    assert isinstance(job.answer, ErrorBody)
    assert job.answer.error.details.retryable


class LateFaults(FakeStore):
    """Writes that the job `a` is accepted, and fails."""

    def put(self, key: str, body: bytes, **more: Any) -> None:
        super().put(key, body, **more)
        if key.endswith("/a/accepted"):
            raise StoreUnavailable("no answer")


async def test_a_job_that_was_recorded_and_never_begun_is_lost_although_its_process_lives() -> None:
    store, pause = LateFaults(), Pause()
    one, two = Replica(store, beat_s=0.05), Replica(store, beat_s=0.05)
    one.house.engine.at_step = lambda _: pause.hold()
    await one.jobs.accept(REQUEST, "b", CALLER)
    with pytest.raises(StoreUnavailable):
        await one.jobs.accept(request(seed=2), "a", CALLER)
    assert (await two.jobs.get("a", "")).state == "queued"
    async with asyncio.timeout(PATIENCE_S):
        lost = await two.jobs.wait("a", "")
    assert (lost.state, code(lost)) == ("failed", "worker_lost")
    assert (await two.jobs.get("b", "")).answer is None
    pause.release()
    assert (await two.jobs.wait("b", "")).state == "completed"


async def test_the_same_request_again_is_the_same_job_and_another_one_a_conflict() -> None:
    store = FakeStore()
    one, two = Replica(store), Replica(store)
    for replica in (one, one, two):
        assert (await replica.jobs.accept(REQUEST, "a", CALLER)).id == "a"
        await replica.jobs.wait("a", "")
    assert len(one.house.engine.edits) + len(two.house.engine.edits) == 1
    for replica in (one, two):
        with pytest.raises(JobConflict):
            await replica.jobs.accept(request(seed=5), "a", CALLER)


async def test_a_hundred_equal_puts_at_once_run_one_edit() -> None:
    replica = Replica(FakeStore())
    await asyncio.gather(*(replica.jobs.accept(REQUEST, "a", CALLER) for _ in range(100)))
    await replica.jobs.wait("a", "")
    assert len(replica.house.engine.edits) == 1


async def test_two_replicas_that_both_begin_a_job_record_one_end() -> None:
    store = FakeStore()
    replicas = Replica(store), Replica(store)
    pauses = Pause(), Pause()
    for replica, pause in zip(replicas, pauses, strict=True):
        replica.house.engine.at_step = lambda step, pause=pause: pause.hold() if not step else None
    await replicas[0].jobs.accept(REQUEST, "a", CALLER)
    await replicas[1].jobs.accept(REQUEST, "a", CALLER, is_new=True)  # it saw no record yet
    for pause in pauses:
        await pause.reached()
        pause.release()
    ends = [await replica.jobs.wait("a", "") for replica in replicas]
    for replica in replicas:
        await replica.jobs.close()
    assert store.puts.count("p/jobs/a/ended") == 1
    assert ends[0].ended_at == ends[1].ended_at


async def test_a_job_of_another_caller_is_not_there() -> None:
    replica = Replica(FakeStore())
    await replica.jobs.accept(REQUEST, "a", Caller(owner="key-1", request_id="r"))
    for owner in ("", "key-2"):
        with pytest.raises(JobNotFound):
            await replica.jobs.get("a", owner)
        with pytest.raises(JobNotFound):
            await replica.jobs.cancel("a", owner)
    with pytest.raises(JobConflict):
        await replica.jobs.accept(REQUEST, "a", CALLER)
    assert (await replica.jobs.wait("a", "key-1")).state == "completed"


@pytest.mark.parametrize("job_id", ["", "A", "-a", "a/b", "..", "alive", "webhooks", "a" * 129])
async def test_an_id_that_no_key_can_have_is_refused_and_never_found(job_id: str) -> None:
    replica = Replica(FakeStore())
    with pytest.raises(InvalidRequest, match="and not be alive or webhooks"):
        await replica.jobs.accept(REQUEST, job_id, CALLER)
    with pytest.raises(JobNotFound):
        await replica.jobs.get(job_id, "")


async def test_a_job_is_forgotten_after_its_retention() -> None:
    store = FakeStore()
    replica = Replica(store)
    await replica.jobs.accept(REQUEST, "a", CALLER)
    await replica.jobs.wait("a", "")
    with pytest.raises(JobNotFound):
        await Replica(store, retention_s=-1).jobs.get("a", "")


async def test_a_job_that_cannot_run_or_be_recorded_is_refused_at_once() -> None:
    store = FakeStore()
    replica = Replica(store, max_unfinished=1)
    replica.not_ready = NotReady("loading")
    with pytest.raises(NotReady):
        await replica.jobs.accept(REQUEST, "a", CALLER)
    replica.not_ready = None
    with pytest.raises(InvalidRequest, match="url"):
        await replica.jobs.accept(request(response_format="b64_json"), "a", CALLER)
    store.put_fault = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await replica.jobs.accept(REQUEST, "a", CALLER)
    store.put_fault = None
    assert not objects(store, "accepted")
    pause = Pause()
    replica.house.engine.at_step = lambda _: pause.hold()
    await replica.jobs.accept(REQUEST, "a", CALLER)
    with pytest.raises(Overloaded):
        await replica.jobs.accept(REQUEST, "b", CALLER)
    pause.release()
    assert (await replica.jobs.wait("a", "")).state == "completed"


async def test_an_end_that_cannot_be_written_is_written_later_and_as_lost_after_the_lease() -> None:
    store = FakeStore()
    replica = Replica(store, beat_s=0.05)
    pause = Pause()
    replica.house.engine.at_step = lambda step: pause.hold() if step == 1 else None
    await replica.jobs.accept(REQUEST, "a", CALLER)
    await pause.reached()
    put = store.put

    def put_results(key: str, *args: Any, **options: Any) -> None:
        if "/jobs/" in key:
            raise StoreUnavailable("down")
        put(key, *args, **options)

    store.put = put_results  # type: ignore[method-assign]
    pause.release()
    await until(lambda: store.results)
    await asyncio.sleep(0.4)  # the lease of three heartbeats is over
    store.put = put  # type: ignore[method-assign]
    job = await replica.jobs.wait("a", "")
    assert (job.state, code(job)) == ("failed", "worker_lost")


async def test_of_many_jobs_that_begin_at_once_no_more_than_the_limit_are_accepted() -> None:
    store = FakeStore()
    replica = Replica(store, max_unfinished=3)
    pause = Pause()
    replica.house.engine.at_step = lambda _: pause.hold()
    begun = await asyncio.gather(
        *(replica.jobs.accept(REQUEST, f"j{number}", CALLER) for number in range(50)),
        return_exceptions=True,
    )
    assert [type(one) for one in begun].count(Job) == 3
    assert [type(one) for one in begun].count(Overloaded) == 47
    assert len(objects(store, "accepted")) == 3
    pause.release()
    await replica.jobs.close()


async def test_a_begin_that_fails_makes_room_for_the_next() -> None:
    store = FakeStore()
    replica = Replica(store, max_unfinished=1)
    store.put_fault = StoreUnavailable("down")
    for job_id in ("a", "b"):
        with pytest.raises(StoreUnavailable):
            await replica.jobs.accept(REQUEST, job_id, CALLER)
    store.put_fault = None
    await replica.jobs.accept(REQUEST, "c", CALLER)
    assert (await replica.jobs.wait("c", "")).state == "completed"


async def test_an_idempotency_key_is_free_again_after_its_retention() -> None:
    store = FakeStore()
    first = Replica(store)
    await first.jobs.accept_repeatable(REQUEST, "k", CALLER)
    await first.jobs.close()
    for asked in (REQUEST, request(seed=5)):
        later = Replica(store, retention_s=-1).jobs
        assert not (await later.accept_repeatable(asked, "k", CALLER)).answer
        await later.close()
        with pytest.raises(JobNotFound):
            await Replica(store, retention_s=-1).jobs.accept(asked, derive_id("", "k", 0), CALLER)
    assert len(objects(store, "accepted")) == 3


async def test_a_key_that_failed_a_thousand_times_is_found_by_few_reads() -> None:
    asked: list[int] = []

    async def has_begun(attempt: int) -> bool:
        asked.append(attempt)
        return attempt <= 1000

    assert await find_last(has_begun, 0) == 1000
    assert len(asked) <= 24


@pytest.mark.parametrize("last", range(12))
async def test_the_last_attempt_is_found_wherever_the_search_begins(last: int) -> None:
    async def has_begun(attempt: int) -> bool:
        return attempt <= last

    assert {await find_last(has_begun, first) for first in range(last + 1)} == {last}


async def test_an_idempotency_key_gives_the_first_answer_and_runs_again_after_a_fault_that_passes() -> (
    None
):
    replica = Replica(FakeStore())
    jobs = replica.jobs
    replica.house.store.put_fault = None
    replica.house.engine.fault = NotReady("for a moment")
    first = await jobs.accept_repeatable(REQUEST, "k", CALLER)
    assert code(await jobs.wait(first.id, "")) == "not_ready"
    replica.house.engine.fault = None
    second = await jobs.accept_repeatable(REQUEST, "k", CALLER)
    assert second.id != first.id
    assert (await jobs.wait(second.id, "")).state == "completed"
    again = await jobs.accept_repeatable(REQUEST, "k", CALLER)
    assert (again.id, again.state) == (second.id, "completed")
    with pytest.raises(JobConflict):
        await jobs.accept_repeatable(request(seed=5), "k", CALLER)
    assert (await jobs.accept_repeatable(REQUEST, "k", Caller("other", "r"))).id != second.id


async def test_a_watcher_sees_the_steps_in_order_and_the_end() -> None:
    replica = Replica(FakeStore())
    pause = Pause()
    replica.house.engine.at_step = lambda step: pause.hold() if step == 2 else None
    await replica.jobs.accept(REQUEST, "a", CALLER)
    states, steps = [], []
    async for job in replica.jobs.watch("a", ""):
        states.append(job.state)
        if job.progress and job.progress.stage == "denoise":
            steps.append(job.progress.step)
            pause.release()
    assert list(dict.fromkeys(states)) == ["queued", "running", "completed"]
    assert steps == sorted(steps)
    assert steps
