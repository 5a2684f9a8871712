"""Admission control: a bounded number of edits in progress, one of them on the model."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from retouch import tracing
from retouch.errors import DeadlineExceeded, ModelLost, NotReady, Overloaded

_NEWEST_WEIGHT = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    on_place: Callable[[int], None]


class Admission:
    """Counts the edits in progress and hands out the model, first come first served.

    An edit takes a place once its source is loaded: `max_queue` places and the one on the model bound
    the memory that decoded images hold. Downloads before that have bounds of their own.
    """

    def __init__(
        self,
        *,
        max_queue: int,
        expected_edit_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        on_model_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._capacity = max_queue + 1
        self._clock = clock
        self._on_model_lost = on_model_lost
        # Held by the edit on the model. asyncio.Lock wakes its waiters in order of arrival.
        self._model = asyncio.Lock()
        self._is_model_lost = False
        self._is_closed = False
        # Set exactly while `in_progress` is 0.
        self._idle = asyncio.Event()
        self._idle.set()
        self._places_taken = 0
        # Until an edit has ended, `expected_edit_s`.
        self._typical_edit_s = expected_edit_s
        self._has_measured = False
        self._began_s = 0.0
        # Edits waiting for the model, in order of arrival; each learns how many are ahead of it.
        self._line: list[_Waiter] = []
        self.in_progress = 0
        """Edits between arrival and answer."""

    @property
    def waiting(self) -> int:
        """Edits in progress that wait for the model."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Edits on the model: 0 or 1."""
        return int(self._model.locked())

    @property
    def ahead(self) -> int:
        """Edits that one which comes now has before it."""
        return self.waiting + self.running

    @property
    def retry_after_s(self) -> int:
        """Seconds until a place is likely to be free: when the edit on the model is likely to end.

        It ends after the moving average of recent edits; one that is overdue is taken to need as long
        again as it is overdue, which also serves before any edit has ended.
        """
        elapsed_s = self._clock() - self._began_s if self.running else 0.0
        return max(1, math.ceil(abs(self._typical_edit_s - elapsed_s)))

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count an edit as in progress.

        Raises:
            NotReady: the service is stopping.
            ModelLost: the model hangs and the process is about to end.
            Overloaded: all places are taken already, so loading the source would be in vain.
        """
        if self._is_closed:
            raise NotReady("the service is stopping")
        self._require_model()
        self._require_place()
        self.in_progress += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_progress -= 1
            if not self.in_progress:
                self._idle.set()

    @contextmanager
    def take_place(self) -> Iterator[None]:
        """Take one of the places.

        Raises:
            Overloaded: all are taken; `retry_after_s` says when one is likely to be free.
        """
        self._require_place()
        self._places_taken += 1
        try:
            yield
        finally:
            self._places_taken -= 1

    @asynccontextmanager
    async def acquire_model(
        self, *, timeout_s: float, on_place: Callable[[int], None] = lambda _: None
    ) -> AsyncIterator[None]:
        """Wait for the model and hold it.

        `on_place` gets the number of edits ahead of this one, each time that one leaves.

        Raises:
            DeadlineExceeded: it did not come free within `timeout_s`.
            ModelLost: the edit before hangs and the process is about to end.
        """
        waiter = _Waiter(on_place)
        self._line.append(waiter)
        try:
            with tracing.span("queue"):
                async with asyncio.timeout(timeout_s):
                    await self._model.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the job's time ran out while it waited for the model"
            ) from error
        finally:
            self._line.remove(waiter)
            for place, other in enumerate(self._line, start=self.running):
                other.on_place(place)
        self._began_s = self._clock()
        try:
            self._require_model()
            yield
            took_s = self._clock() - self._began_s
            weight = _NEWEST_WEIGHT if self._has_measured else 1.0
            self._typical_edit_s += weight * (took_s - self._typical_edit_s)
            self._has_measured = True
        finally:
            self._model.release()

    def lose_model(self) -> None:
        """Refuse every edit that waits or comes, as the one on the model does not end."""
        self._is_model_lost = True
        self._on_model_lost()

    async def close(self) -> None:
        """Admit no more edits, and wait until those in progress have ended."""
        self._is_closed = True
        await self._idle.wait()

    def _require_model(self) -> None:
        if self._is_model_lost:
            raise ModelLost

    def _require_place(self) -> None:
        if self._places_taken >= self._capacity:
            raise Overloaded(
                f"no place is free: at most {self._capacity - 1} edits wait (MAX_QUEUE)",
                details={"retry_after": self.retry_after_s},
            )
