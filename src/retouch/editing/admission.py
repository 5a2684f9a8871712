"""One edit on the model at a time, in order of arrival, with a bounded number of others in the house."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from retouch.errors import DeadlineExceeded, Overloaded

_NEWEST_WEIGHT = 0.2


class Admission:
    """Counts the edits in the house and hands out the model, first come first served.

    `max_queue` edits may be in the house beside the one on the model; where they are (download,
    queue, upload) does not matter, so their memory is bounded too.
    """

    def __init__(self, *, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = max_queue + 1
        self._clock = clock
        self._model = asyncio.Lock()
        self._typical_edit_s = 1.0
        self.inside = 0

    @property
    def retry_after_s(self) -> int:
        """Seconds until a place is likely to be free: what edits take of late."""
        return max(1, math.ceil(self._typical_edit_s))

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places in the house.

        Raises:
            Overloaded: all are taken; it says when one is likely to be free.
        """
        if self.inside >= self._capacity:
            raise Overloaded(
                f"no place is free: at most {self._capacity - 1} edits wait (MAX_QUEUE)",
                details={"retry_after": self.retry_after_s},
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    @asynccontextmanager
    async def turn(self, *, timeout_s: float) -> AsyncIterator[None]:
        """Wait for the model and hold it.

        Raises:
            DeadlineExceeded: it did not come free within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._model.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the job's time ran out while it waited for the model"
            ) from error
        began = self._clock()
        try:
            yield
        finally:
            took_s = self._clock() - began
            self._typical_edit_s += _NEWEST_WEIGHT * (took_s - self._typical_edit_s)
            self._model.release()
