"""Finds the webhooks of processes that died, and has them delivered by this one."""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable

from retouch.errors import NotReady, StorageError, StoreDenied
from retouch.jobs.heartbeat import Heartbeat
from retouch.jobs.records import Accepted, Ended, Records
from retouch.logs import event

_log = logging.getLogger(__name__)
_EVERY_S = 60.0
_CLAIM = "claim."


def read_names(names: list[str]) -> dict[str, list[str]]:
    """Return the jobs whose webhook is not delivered, each with the processes that took it over.

    >>> read_names(["a/due", "b/claim.p1", "b/due", "c/delivered", "c/due"])
    {'a': [], 'b': ['p1']}
    """
    jobs: dict[str, list[str]] = defaultdict(list)
    for name in names:
        job_id, _, mark = name.rpartition("/")
        jobs[job_id].append(mark)
    return {
        job_id: [mark.removeprefix(_CLAIM) for mark in marks if mark.startswith(_CLAIM)]
        for job_id, marks in jobs.items()
        if "due" in marks and "delivered" not in marks
    }


class Sweeper:
    """Sweeps once a minute. `adopt` delivers the end of a job, `is_mine` says whether this process has a job."""

    def __init__(
        self,
        records: Records,
        heartbeat: Heartbeat,
        *,
        adopt: Callable[[Accepted, Ended], Awaitable[None]],
        is_mine: Callable[[str], bool],
        scale: float = 1.0,
    ) -> None:
        self._records = records
        self._heartbeat = heartbeat
        self._adopt = adopt
        self._is_mine = is_mine
        self._scale = scale

    async def run(self) -> None:
        """Sweep until cancelled, or until it shows that the S3 key may not list the bucket."""
        while True:
            try:
                await self.sweep()
            except StoreDenied:
                event(_log, "webhook.sweep_denied", level=logging.WARNING)
                return
            except (StorageError, NotReady) as error:
                event(_log, "webhook.sweep_failed", level=logging.WARNING, code=error.code)
            # Replicas that started together must not take the same webhook at the same moment.
            jitter = random.uniform(0.8, 1.2)  # noqa: S311 - no secret
            await asyncio.sleep(_EVERY_S * self._scale * jitter)

    async def sweep(self) -> None:
        """Adopt every webhook whose processes are all dead; a job without an end is then lost.

        Raises:
            StorageError: the records cannot be read or written.
        """
        for job_id, claims in read_names(await self._records.list("webhooks/")).items():
            if self._is_mine(job_id):
                continue
            accepted = await self._records.accepted(job_id)
            if accepted is None or await self._is_any_alive([accepted.process, *claims]):
                continue
            ended = await self._records.ended(job_id)
            if ended is None:
                ended = Ended.of_lost(accepted)
                await self._records.end(job_id, ended)
            await self._adopt(accepted, ended)

    async def _is_any_alive(self, processes: list[str]) -> bool:
        for process in reversed(processes):
            if await self._heartbeat.find(process) is not None:
                return True
        return False
