"""One flight a key: callers that want the same thing at the same time share one attempt at it."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class SingleFlight(Generic[T]):
    """The flights under way, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def join(self, key: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Share the flight for `key`, or start one; its result or error is everybody's.

        A caller that is cancelled leaves the others flying; the last one to leave ends the flight.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.create_task(start()))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda task: self._land(key, task))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                flight.task.cancel()
                self._land(key, flight.task)

    def _land(self, key: str, task: asyncio.Task[T]) -> None:
        if key in self._flights and self._flights[key].task is task:
            del self._flights[key]
        if task.done() and not task.cancelled():
            task.exception()  # seen, also where every caller has left
