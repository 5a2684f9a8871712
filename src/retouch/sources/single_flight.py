"""Share one running call between all callers that ask for the same key at the same time."""

import asyncio
import copy
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from retouch import tracing
from retouch.logs import current_request_id, event

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Call(Generic[T]):
    task: asyncio.Task[T]
    trace: tracing.Link | None
    request_id: str | None
    waiting: int = 0


class SingleFlight(Generic[T]):
    """The running calls, by key. Belongs to one event loop."""

    def __init__(self) -> None:
        self._calls: dict[str, _Call[T]] = {}

    def __len__(self) -> int:
        """How many calls are running."""
        return len(self._calls)

    async def do(self, key: str, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of the running call for `key`, starting it if there is none.

        Every caller gets its error as a copy. A cancelled caller leaves the call to the others; when
        the last caller is cancelled, so is the call. In log and traces the call belongs to its first
        caller, even once that has gone; the others are linked to it.
        """
        call = self._calls.get(key)
        if call is None:
            call = _Call(asyncio.create_task(start()), tracing.current(), current_request_id())
            self._calls[key] = call
            call.task.add_done_callback(lambda task: self._forget(key, task))
        elif call.request_id != current_request_id():
            event(_log, "load.shared", begun_by=call.request_id)
        tracing.link(call.trace)
        call.waiting += 1
        try:
            await asyncio.wait([call.task])
            if error := call.task.exception():
                # Each raise adds to an exception's traceback: a shared one would gather them all.
                twin = copy.copy(error).with_traceback(error.__traceback__)
                raise twin from error.__cause__
            return call.task.result()
        finally:
            call.waiting -= 1
            if not call.waiting and not call.task.done():
                call.task.cancel()
                self._forget(key, call.task)

    def _forget(self, key: str, task: asyncio.Task[T]) -> None:
        # While a cancelled call winds up, another one may have taken its key.
        if key in self._calls and self._calls[key].task is task:
            del self._calls[key]
        if task.done() and not task.cancelled():
            task.exception()  # marks it as retrieved, also where every caller has gone
