"""A job while this process runs it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from retouch.errors import Cancelled, EditError, InternalError
from retouch.jobs.records import Accepted, Ended, describe
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
