import asyncio

import pytest
from support.fakes import Clock, settle

from retouch.editing.admission import Admission
from retouch.errors import DeadlineExceeded, ModelLost, NotReady, Overloaded


class Visitors:
    """Tasks that acquire the model and hold it until they are released."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._go: dict[str, asyncio.Event] = {}

    async def come(self, *names: str) -> None:
        for name in names:
            self._go[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._stay(name))
        await settle()

    async def finish(self, name: str) -> None:
        self._go[name].set()
        await settle()

    async def _stay(self, name: str) -> None:
        async with self._admission.acquire_model(timeout_s=60):
            self.order.append(name)
            await self._go[name].wait()


async def test_one_edit_has_the_model_at_a_time_in_order_of_arrival() -> None:
    visitors = Visitors(Admission(max_queue=9))
    await visitors.come("a", "b", "c")
    assert visitors.order == ["a"]
    await visitors.finish("a")
    assert visitors.order == ["a", "b"]
    await visitors.finish("b")
    await visitors.finish("c")
    assert visitors.order == ["a", "b", "c"]


async def test_a_cancelled_waiter_is_skipped() -> None:
    visitors = Visitors(Admission(max_queue=9))
    await visitors.come("a", "b", "c")
    visitors.tasks["b"].cancel()
    await visitors.finish("a")
    assert visitors.order == ["a", "c"]
    await visitors.finish("c")


@pytest.mark.parametrize("fault", [ValueError, asyncio.CancelledError])
async def test_the_model_is_free_after_any_outcome(fault: type[BaseException]) -> None:
    admission = Admission(max_queue=0)
    with pytest.raises(fault):
        async with admission.acquire_model(timeout_s=1):
            raise fault
    async with admission.acquire_model(timeout_s=1):
        pass


async def test_waiting_ends_at_the_deadline_and_leaves_no_trace() -> None:
    admission = Admission(max_queue=9)
    async with admission.acquire_model(timeout_s=1):
        with pytest.raises(DeadlineExceeded, match="waited for the model"):
            async with admission.acquire_model(timeout_s=0.01):
                pytest.fail("two hold the model")
    async with admission.acquire_model(timeout_s=1):
        pass


async def test_a_timeout_of_the_edit_itself_is_not_taken_for_the_queue_s() -> None:
    admission = Admission(max_queue=0)
    with pytest.raises(TimeoutError):
        async with admission.acquire_model(timeout_s=1):
            raise TimeoutError


def test_places_are_those_of_the_queue_and_one_more() -> None:
    admission = Admission(max_queue=1)
    with admission.take_place(), admission.take_place():
        with pytest.raises(Overloaded, match=r"at most 1 edits wait \(MAX_QUEUE\)"):
            admission.take_place().__enter__()
        with pytest.raises(Overloaded):  # before its source is loaded in vain
            admission.admit().__enter__()
    with admission.admit(), admission.take_place():
        pass


def test_without_a_queue_one_edit_has_a_place() -> None:
    admission = Admission(max_queue=0)
    with admission.take_place(), pytest.raises(Overloaded):
        admission.take_place().__enter__()


def test_edits_that_load_their_sources_take_no_place() -> None:
    admission = Admission(max_queue=0)
    with admission.admit(), admission.admit():
        assert admission.in_progress == 2
        with admission.take_place():
            pass
    assert admission.in_progress == 0


@pytest.mark.parametrize("fault", [ValueError, asyncio.CancelledError])
def test_a_place_is_free_after_any_outcome(fault: type[BaseException]) -> None:
    admission = Admission(max_queue=0)
    with pytest.raises(fault), admission.admit(), admission.take_place():
        raise fault
    assert admission.in_progress == 0
    with admission.take_place():
        pass


async def test_waiting_and_running_are_counted_apart() -> None:
    admission = Admission(max_queue=9)
    visitors = Visitors(admission)
    await visitors.come("a", "b", "c")
    assert (admission.running, admission.waiting) == (1, 2)
    for name in ("a", "b", "c"):
        await visitors.finish(name)
    assert (admission.running, admission.waiting) == (0, 0)


async def test_who_waits_is_told_how_many_are_before_it_whenever_that_changes() -> None:
    admission = Admission(max_queue=9)
    visitors = Visitors(admission)
    await visitors.come("a", "b", "c")
    places: list[int] = []

    async def wait() -> None:
        async with admission.acquire_model(timeout_s=60, on_place=places.append):
            assert admission.waiting == 0

    assert admission.ahead == 3
    waiting = asyncio.create_task(wait())
    await settle()
    visitors.tasks["b"].cancel()
    await settle()
    await visitors.finish("a")
    await visitors.finish("c")
    await waiting
    assert places == [2, 1]


async def test_a_lost_model_ends_all_that_wait_and_come() -> None:
    admission = Admission(max_queue=9)
    visitors = Visitors(admission)
    await visitors.come("hung", "b")
    admission.lose_model()
    await visitors.finish("hung")
    with pytest.raises(ModelLost):
        await visitors.tasks["b"]
    with pytest.raises(ModelLost):
        admission.admit().__enter__()


async def test_closing_waits_for_edits_in_progress_and_admits_no_more() -> None:
    admission = Admission(max_queue=9)
    with admission.admit():
        closing = asyncio.create_task(admission.close())
        await settle()
        assert not closing.done()
        with pytest.raises(NotReady, match="stopping"):
            admission.admit().__enter__()
    await closing


async def wait_told(admission: Admission) -> int:
    with pytest.raises(Overloaded) as caught, admission.take_place(), admission.take_place():
        pytest.fail("there was a place")
    return caught.value.retry_after_s


async def test_retry_after_follows_how_long_edits_take() -> None:
    clock = Clock()
    admission = Admission(max_queue=0, clock=clock)
    assert await wait_told(admission) == 1
    waits = []
    for took_s in (10.5, *[40.5] * 30):
        async with admission.acquire_model(timeout_s=1):
            clock.now_s += took_s
        waits.append(await wait_told(admission))
    assert waits[0] == 11
    assert waits == sorted(waits)
    assert waits[-1] == 41
    for _ in range(60):
        async with admission.acquire_model(timeout_s=1):
            clock.now_s += 0.0
    assert await wait_told(admission) == 1


async def test_before_an_edit_has_ended_retry_after_is_what_the_warm_up_foretells() -> None:
    admission = Admission(max_queue=0, expected_edit_s=9.5, clock=Clock())
    assert await wait_told(admission) == 10
    async with admission.acquire_model(timeout_s=1):
        pass
    assert await wait_told(admission) == 1


@pytest.mark.parametrize(
    ("expected_s", "elapsed_s", "told_s"),
    [(10, 0, 10), (10, 7, 3), (10, 9.9, 1), (10, 12, 2), (10, 25, 15), (0, 8, 8), (0, 0, 1)],
)
async def test_retry_after_is_what_is_left_of_the_edit_on_the_model(
    expected_s: float, elapsed_s: float, told_s: int
) -> None:
    clock = Clock()
    admission = Admission(max_queue=0, expected_edit_s=expected_s, clock=clock)
    async with admission.acquire_model(timeout_s=1):
        clock.now_s += elapsed_s
        assert await wait_told(admission) == told_s
