import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from support.fakes import settle

from retouch.errors import SourceTimedOut
from retouch.logs import bind
from retouch.sources.single_flight import SingleFlight


class Calls:
    """Calls that end when the test says so."""

    def __init__(self) -> None:
        self.single: SingleFlight[str] = SingleFlight()
        self.started: list[str] = []
        self.ended: list[str] = []
        self.results: dict[str, asyncio.Future[str]] = {}

    def start(self, key: str) -> Callable[[], Coroutine[Any, Any, str]]:
        async def run() -> str:
            self.started.append(key)
            self.results[key] = asyncio.get_running_loop().create_future()
            try:
                return await self.results[key]
            finally:
                self.ended.append(key)

        return run

    async def start_callers(self, key: str, callers: int = 1) -> list[asyncio.Task[str]]:
        tasks = [asyncio.create_task(self.single.do(key, self.start(key))) for _ in range(callers)]
        await settle()
        return tasks

    async def finish(self, key: str, result: str | Exception) -> None:
        if isinstance(result, Exception):
            self.results[key].set_exception(result)
        else:
            self.results[key].set_result(result)
        await settle()

    @property
    def running(self) -> int:
        return len(self.single)


async def test_callers_of_one_key_share_one_call() -> None:
    calls = Calls()
    callers = await calls.start_callers("a", 20)
    await calls.finish("a", "result")
    assert [await caller for caller in callers] == ["result"] * 20
    assert calls.started == ["a"]
    assert calls.running == 0


async def test_calls_of_different_keys_run_concurrently() -> None:
    calls = Calls()
    (one,), (other,) = await calls.start_callers("a"), await calls.start_callers("b")
    await calls.finish("b", "second")
    assert await other == "second"
    assert not one.done()
    await calls.finish("a", "first")
    assert await one == "first"


async def test_a_caller_after_the_end_starts_a_new_call() -> None:
    calls = Calls()
    for result in ("one", "two"):
        (caller,) = await calls.start_callers("a")
        await calls.finish("a", result)
        assert await caller == result
    assert calls.started == ["a", "a"]


async def test_an_error_is_raised_to_every_caller_and_not_kept() -> None:
    calls = Calls()
    callers = await calls.start_callers("a", 3)
    await calls.finish("a", SourceTimedOut("late"))
    for caller in callers:
        with pytest.raises(SourceTimedOut):
            await caller
    (again,) = await calls.start_callers("a")
    await calls.finish("a", "fine")
    assert await again == "fine"


async def test_a_cancelled_caller_does_not_end_the_call_of_others() -> None:
    calls = Calls()
    first, second, third = await calls.start_callers("a", 3)
    first.cancel()
    third.cancel()
    await settle()
    assert first.cancelled()
    assert third.cancelled()
    assert calls.ended == []
    await calls.finish("a", "result")
    assert await second == "result"


async def test_the_last_cancelled_caller_ends_the_call() -> None:
    calls = Calls()
    callers = await calls.start_callers("a", 2)
    for caller in callers:
        assert calls.ended == []
        caller.cancel()
        await settle()
    assert calls.ended == ["a"]
    assert calls.running == 0


async def test_a_caller_during_the_end_of_a_cancelled_call_starts_another() -> None:
    single: SingleFlight[str] = SingleFlight()
    may_end = asyncio.Event()

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()
        return "never"

    async def quick() -> str:
        return "quick"

    first = asyncio.create_task(single.do("a", stubborn))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    slow = asyncio.create_task(single.do("a", stubborn))
    await settle()
    may_end.set()  # the first call ends now, and must not remove the second one
    await settle()
    assert len(single) == 1
    slow.cancel()
    await settle()
    assert await single.do("a", quick) == "quick"


async def test_an_error_after_every_caller_has_gone_is_not_reported_as_unretrieved() -> None:
    single: SingleFlight[str] = SingleFlight()
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))

    async def fails_when_ended() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            raise SourceTimedOut("late")

    caller = asyncio.create_task(single.do("a", fails_when_ended))
    await settle()
    caller.cancel()
    await settle()
    del caller
    gc.collect()
    assert complaints == []


async def test_an_error_at_the_moment_the_last_caller_is_cancelled_is_retrieved() -> None:
    calls = Calls()
    (caller,) = await calls.start_callers("a")
    calls.results["a"].set_exception(SourceTimedOut("late"))  # before the loop turns
    caller.cancel()
    await settle()
    gc.collect()
    assert caller.cancelled()
    assert calls.running == 0


async def test_who_joins_a_call_logs_whose_lines_it_has(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    calls = Calls()
    for request_id in ("first", "first", "second"):
        with bind(request_id):
            await calls.start_callers("a")
    await calls.finish("a", "result")
    shared = [record for record in caplog.records if record.message == "load.shared"]
    assert [vars(record)["fields"] for record in shared] == [{"begun_by": "first"}]
