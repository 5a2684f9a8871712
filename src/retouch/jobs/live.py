"""A job while this process runs it, and the line of those that load their sources."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from retouch.errors import Cancelled, EditError, InternalError, StorageError
from retouch.jobs.heartbeat import Heartbeat
from retouch.jobs.records import Accepted, Ended, Records, describe
from retouch.logs import event
from retouch.schema import EditRequest, EditResult, Job, Progress

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a job is for. `owner` is the API key's name, or empty; `base_url` completes local links."""

    owner: str
    request_id: str
    base_url: str = ""


Run = Callable[[EditRequest, str, Caller, Callable[[Progress], None]], Awaitable[EditResult]]
"""Edits: takes the request, the job's id, its caller and where progress goes."""


class LoadingLine:
    """Runs edits of jobs, of which `max_loading` load their sources at the same time; more wait in line."""

    def __init__(self, run: Run, *, max_loading: int) -> None:
        self._run = run
        self._turns = asyncio.Semaphore(max_loading)

    async def run(
        self,
        request: EditRequest,
        job_id: str,
        caller: Caller,
        progress: Callable[[Progress], None],
    ) -> EditResult:
        """Edit when it is the job's turn. The turn ends once its sources are loaded."""
        await self._turns.acquire()
        with ExitStack() as turn:
            turn.callback(self._turns.release)

            def report(made: Progress) -> None:
                if made.stage != "source":
                    turn.close()
                progress(made)

            edit = self._run(request, job_id, caller, report)
            del request  # the edit lets go of an image in it once it is decoded
            return await edit


@dataclass
class Live:
    """A job of this process, until its end is written."""

    accepted: Accepted
    edit: asyncio.Task[EditResult]
    progress: Progress | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        """Wake everyone who watches the job."""
        self.changed.set()
        self.changed = asyncio.Event()

    def view(self) -> Job:
        """Return the job as callers see it."""
        return describe(self.accepted, progress=self.progress)

    def end(self, now_s: float) -> Ended:
        """Return the end of the job, whose edit has ended."""
        error = (
            Cancelled("the job was cancelled") if self.edit.cancelled() else self.edit.exception()
        )
        if error is None:
            return Ended.of_result(self.edit.result(), now_s)
        if not isinstance(error, EditError):
            event(_log, "job.crashed", level=logging.ERROR, cause=error)
            error = InternalError()
        return Ended.of_error(error, now_s, request_id=self.accepted.request_id)


async def keep_cancelling(jobs: Mapping[str, Live], records: Records, heartbeat: Heartbeat) -> None:
    """Cancel the jobs that another replica was asked to cancel, once in a slot and until cancelled.

    Apart from heartbeats: it takes a read of the store for each job, which may be longer than a slot.
    """
    while True:
        with suppress(StorageError):
            for job_id, live in list(jobs.items()):
                if await records.read(f"{job_id}/cancel") is not None:
                    live.edit.cancel()
        await asyncio.sleep(heartbeat.left_in_slot_s)
