"""Admission control: a bounded number of edits in progress, one of them on the model."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from retouch.errors import DeadlineExceeded, ModelLost, NotReady, Overloaded

_NEWEST_WEIGHT = 0.2


class Admission:
    """Counts the edits in progress and hands out the model, first come first served.

    `max_queue` edits may be in progress beside the one on the model, whether they download, wait or
    upload, so the memory they hold is bounded.
    """

    def __init__(self, *, max_queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = max_queue + 1
        self._clock = clock
        # Held by the edit on the model. asyncio.Lock wakes its waiters in order of arrival.
        self._model = asyncio.Lock()
        self._is_model_lost = False
        self._is_closed = False
        # Set exactly while `in_progress` is 0.
        self._idle = asyncio.Event()
        self._idle.set()
        self._typical_edit_s = 1.0
        self.in_progress = 0

    @property
    def retry_after_s(self) -> int:
        """Seconds until a place is likely to be free: the moving average of recent edits."""
        return max(1, math.ceil(self._typical_edit_s))

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Take one of the places.

        Raises:
            NotReady: the service is stopping.
            ModelLost: the model hangs and the process is about to end.
            Overloaded: all places are taken; `retry_after_s` says when one is likely to be free.
        """
        if self._is_closed:
            raise NotReady("the service is stopping")
        self._require_model()
        if self.in_progress >= self._capacity:
            raise Overloaded(
                f"no place is free: at most {self._capacity - 1} edits wait (MAX_QUEUE)",
                details={"retry_after": self.retry_after_s},
            )
        self.in_progress += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_progress -= 1
            if not self.in_progress:
                self._idle.set()

    @asynccontextmanager
    async def acquire_model(self, *, timeout_s: float) -> AsyncIterator[None]:
        """Wait for the model and hold it.

        Raises:
            DeadlineExceeded: it did not come free within `timeout_s`.
            ModelLost: the edit before hangs and the process is about to end.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._model.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the job's time ran out while it waited for the model"
            ) from error
        began_s = self._clock()
        try:
            self._require_model()
            yield
            took_s = self._clock() - began_s
            self._typical_edit_s += _NEWEST_WEIGHT * (took_s - self._typical_edit_s)
        finally:
            self._model.release()

    def lose_model(self) -> None:
        """Refuse every edit that waits or comes: the one on the model does not end."""
        self._is_model_lost = True

    async def close(self) -> None:
        """Admit no more edits, and wait until those in progress have ended."""
        self._is_closed = True
        await self._idle.wait()

    def _require_model(self) -> None:
        if self._is_model_lost:
            raise ModelLost
