import asyncio

import pytest

from retouch.net.limits import Budget, ConnectionLimiter


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Visitors:
    """Tasks that take a slot for a host and keep it."""

    def __init__(self, slots: ConnectionLimiter) -> None:
        self._slots = slots
        self.inside: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, *hosts: str) -> None:
        self.tasks += [asyncio.create_task(self._stay(host)) for host in hosts]
        await settle()

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _stay(self, host: str) -> None:
        async with self._slots.hold(host):
            self.inside.append(host)
            try:
                await asyncio.Event().wait()
            finally:
                self.inside.remove(host)


async def test_who_waits_for_a_host_holds_up_no_other_host() -> None:
    visitors = Visitors(ConnectionLimiter(3, per_host=2))
    await visitors.come("a", "a", "a", "a", "b")
    assert visitors.inside == ["a", "a", "b"]
    await visitors.leave()


async def test_all_slots_together_are_bounded_and_first_come_is_first_served() -> None:
    visitors = Visitors(ConnectionLimiter(2, per_host=2))
    await visitors.come("a", "b", "c", "d")
    assert visitors.inside == ["a", "b"]
    visitors.tasks[0].cancel()
    await settle()
    assert visitors.inside == ["b", "c"]
    await visitors.leave()


async def test_a_cancelled_wait_takes_no_slot() -> None:
    visitors = Visitors(ConnectionLimiter(2, per_host=1))
    await visitors.come("a", "a", "a")
    visitors.tasks[1].cancel()
    visitors.tasks[0].cancel()
    await settle()
    assert visitors.inside == ["a"]
    await visitors.leave()


class Downloads:
    """Downloads that buffer and then wait; `ended` has those the budget gave up."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.ended: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self, name: str, count: int) -> None:
        self.tasks.append(asyncio.create_task(self._buffer(name, count)))
        await settle()

    async def _buffer(self, name: str, count: int) -> None:
        try:
            async with asyncio.timeout(60) as deadline:
                try:
                    self._budget.add(deadline, count)
                    await asyncio.Event().wait()
                finally:
                    self._budget.release(deadline)
        except TimeoutError:
            self.ended.append(name)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_over_the_budget_the_oldest_large_download_is_ended() -> None:
    downloads = Downloads(Budget(100))
    for name, count in [("small", 1), ("first", 45), ("second", 50), ("third", 4)]:
        await downloads.start(name, count)
    assert downloads.ended == []
    await downloads.start("fourth", 10)
    assert downloads.ended == ["first"]
    await downloads.start("fifth", 35)
    assert downloads.ended == ["first"]
    await downloads.start("sixth", 1)
    assert downloads.ended == ["first", "second"]
    await downloads.stop()


async def test_many_just_under_their_fair_share_do_not_push_out_a_newcomer() -> None:
    downloads = Downloads(Budget(100))
    for n in range(10):
        await downloads.start(f"hoard {n}", 9)
    await downloads.start("newcomer", 25)
    assert downloads.ended == ["hoard 0", "hoard 1"]
    await downloads.stop()


async def test_a_download_that_ended_gives_its_bytes_back() -> None:
    downloads = Downloads(Budget(100))
    for _ in range(5):
        await downloads.start("again", 100)
        await downloads.stop()
    assert downloads.ended == []


async def test_a_download_whose_time_is_up_anyway_is_left_to_it() -> None:
    budget = Budget(100)
    with pytest.raises(TimeoutError):
        await expire_while_another_needs_room(budget)


async def expire_while_another_needs_room(budget: Budget) -> None:
    async with asyncio.timeout(0) as late:
        budget.add(late, 90)
        try:
            await asyncio.Event().wait()
        finally:
            budget.add(asyncio.timeout(None), 20)
