"""Replicas that share one store, in one process: a host, its edits and its jobs each."""

from collections.abc import Callable
from typing import Any

from retouch.jobs.jobs import Caller, Jobs
from retouch.jobs.lookup import JobSettings
from retouch.jobs.records import Records
from retouch.schema import EditRequest, EditResult, Progress
from support.fakes import FakeStore, House

CALLER = Caller(owner="", request_id="r-1")


class Replica:
    """A process that edits; heartbeats are as far apart as `beat_s` says."""

    def __init__(self, store: FakeStore, *, beat_s: float = 0.05, **settings: Any) -> None:
        self.house = House(store=store)
        self.not_ready: Exception | None = None
        self.jobs = Jobs(
            Records(lambda: store, prefix="p/"),
            JobSettings(**({"poll_s": 0.01} | settings)),
            run=self._run,
            require_ready=self._require_ready,
            heartbeat_s=beat_s,
        )

    async def _run(
        self,
        request: EditRequest,
        job_id: str,
        caller: Caller,
        progress: Callable[[Progress], None],
    ) -> EditResult:
        return await self.house.editor.run(
            request, job_id=job_id, request_id=caller.request_id, progress=progress
        )

    def _require_ready(self) -> None:
        if self.not_ready:
            raise self.not_ready
