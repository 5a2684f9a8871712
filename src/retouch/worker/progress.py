"""Sends a job's progress to the platform: one message at a time, none after the result."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from retouch.logs import event
from retouch.schema import Progress

_log = logging.getLogger(__name__)
_PERCENT_BEFORE = {"source": 0, "queue": 5, "condition": 5, "vae_decode": 95, "store": 98}
_DENOISE_FROM, _DENOISE_TO = 5, 95

Message = dict[str, str | int]
Send = Callable[[Message], Awaitable[None]]


def describe(progress: Progress) -> Message:
    """Return the message for `progress`, with an estimate of the percentage done.

    >>> describe(Progress(stage="denoise", step=10, steps=20))
    {'stage': 'denoise', 'step': 10, 'steps': 20, 'place': 0, 'percent': 50}
    """
    percent = _PERCENT_BEFORE.get(progress.stage, _DENOISE_FROM)
    if progress.stage == "denoise" and progress.steps:
        percent += (_DENOISE_TO - _DENOISE_FROM) * progress.step // progress.steps
    return {**progress.model_dump(), "percent": percent}


class Reporter:
    """Sends the newest progress, at most one message every `every_s`, and drops those in between.

    Progress and result go to the same URL on Runpod, and the later one counts: a job whose progress
    arrives last stays in progress for ever (runpod/runpod-python#250).
    """

    def __init__(self, send: Send, *, every_s: float = 1.0, patience_s: float = 5.0) -> None:
        self._send = send
        self._every_s = every_s
        self._patience_s = patience_s
        self._newest: Progress | None = None
        self._is_new = asyncio.Event()  # set while `_newest` has not been sent
        self._sending = asyncio.Lock()  # held while a message is under way

    def report(self, progress: Progress) -> None:
        """Queue a progress for sending, in place of one not sent yet; return at once."""
        self._newest = progress
        self._is_new.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[[Progress], None]]:
        """Give the block `report`, and send while it runs. After it no message is under way.

        A message under way is given `patience_s` to arrive, then cancelled.
        """
        task = asyncio.create_task(self._run())
        try:
            yield self.report
        finally:
            try:
                async with asyncio.timeout(self._patience_s), self._sending:
                    task.cancel()
            except TimeoutError:
                event(_log, "progress.abandoned", level=logging.WARNING)
            finally:
                task.cancel()
                await asyncio.wait([task])

    async def _run(self) -> None:
        while True:
            await self._is_new.wait()
            self._is_new.clear()
            assert self._newest is not None  # noqa: S101 - the event is set after it
            async with self._sending:
                try:
                    await self._send(describe(self._newest))
                except OSError as error:  # progress is a courtesy: the edit goes on
                    event(_log, "progress.not_sent", level=logging.WARNING, cause=error)
            await asyncio.sleep(self._every_s)
