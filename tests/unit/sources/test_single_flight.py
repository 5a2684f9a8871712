import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from support.fakes import settle

from retouch.errors import SourceTimedOut
from retouch.sources.single_flight import SingleFlight


class Airport:
    """Flights that land when they are told to."""

    def __init__(self) -> None:
        self.flights: SingleFlight[str] = SingleFlight()
        self.started: list[str] = []
        self.ended: list[str] = []
        self.landing: dict[str, asyncio.Future[str]] = {}

    def start(self, key: str) -> Callable[[], Coroutine[Any, Any, str]]:
        async def fly() -> str:
            self.started.append(key)
            self.landing[key] = asyncio.get_running_loop().create_future()
            try:
                return await self.landing[key]
            finally:
                self.ended.append(key)

        return fly

    async def board(self, key: str, callers: int = 1) -> list[asyncio.Task[str]]:
        tasks = [asyncio.create_task(self.flights.do(key, self.start(key))) for _ in range(callers)]
        await settle()
        return tasks

    async def land(self, key: str, result: str | Exception) -> None:
        if isinstance(result, Exception):
            self.landing[key].set_exception(result)
        else:
            self.landing[key].set_result(result)
        await settle()

    @property
    def under_way(self) -> int:
        return len(self.flights)


async def test_callers_of_one_key_share_one_flight() -> None:
    airport = Airport()
    callers = await airport.board("a", 20)
    await airport.land("a", "result")
    assert [await caller for caller in callers] == ["result"] * 20
    assert airport.started == ["a"]
    assert airport.under_way == 0


async def test_callers_of_other_keys_fly_beside() -> None:
    airport = Airport()
    (one,), (other,) = await airport.board("a"), await airport.board("b")
    await airport.land("b", "second")
    assert await other == "second"
    assert not one.done()
    await airport.land("a", "first")
    assert await one == "first"


async def test_the_next_caller_after_a_landing_flies_anew() -> None:
    airport = Airport()
    for result in ("one", "two"):
        (caller,) = await airport.board("a")
        await airport.land("a", result)
        assert await caller == result
    assert airport.started == ["a", "a"]


async def test_an_error_is_everybody_s_and_is_not_kept() -> None:
    airport = Airport()
    callers = await airport.board("a", 3)
    await airport.land("a", SourceTimedOut("late"))
    for caller in callers:
        with pytest.raises(SourceTimedOut):
            await caller
    (again,) = await airport.board("a")
    await airport.land("a", "fine")
    assert await again == "fine"


async def test_a_caller_that_leaves_does_not_end_the_flight_of_others() -> None:
    airport = Airport()
    first, second, third = await airport.board("a", 3)
    first.cancel()
    third.cancel()
    await settle()
    assert first.cancelled()
    assert third.cancelled()
    assert airport.ended == []
    await airport.land("a", "result")
    assert await second == "result"


async def test_the_last_to_leave_ends_the_flight() -> None:
    airport = Airport()
    callers = await airport.board("a", 2)
    for caller in callers:
        assert airport.ended == []
        caller.cancel()
        await settle()
    assert airport.ended == ["a"]
    assert airport.under_way == 0


async def test_who_comes_while_an_ended_flight_still_winds_up_starts_another() -> None:
    flights: SingleFlight[str] = SingleFlight()
    may_end = asyncio.Event()

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            await may_end.wait()
        return "never"

    async def quick() -> str:
        return "quick"

    first = asyncio.create_task(flights.do("a", stubborn))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    slow = asyncio.create_task(flights.do("a", stubborn))
    await settle()
    may_end.set()  # the first flight lands now, and must not take the second one's place
    await settle()
    assert len(flights) == 1
    slow.cancel()
    await settle()
    assert await flights.do("a", quick) == "quick"


async def test_a_fault_after_everybody_left_is_not_reported_as_forgotten() -> None:
    flights: SingleFlight[str] = SingleFlight()
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))

    async def fails_when_ended() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            raise SourceTimedOut("late")

    caller = asyncio.create_task(flights.do("a", fails_when_ended))
    await settle()
    caller.cancel()
    await settle()
    del caller
    gc.collect()
    assert complaints == []


async def test_an_error_that_arrives_as_the_last_caller_leaves_is_not_lost() -> None:
    airport = Airport()
    (caller,) = await airport.board("a")
    airport.landing["a"].set_exception(SourceTimedOut("late"))  # before the loop turns
    caller.cancel()
    await settle()
    gc.collect()
    assert caller.cancelled()
    assert airport.under_way == 0
