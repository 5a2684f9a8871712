"""Runs jobs and answers about them; any replica answers for all that share the store."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from weakref import WeakValueDictionary

from retouch.editing.source_set import require_destinations
from retouch.errors import InvalidRequest, JobConflict, JobNotFound, Overloaded, StorageError
from retouch.jobs.attempts import accept_attempt
from retouch.jobs.heartbeat import Heartbeat
from retouch.jobs.live import Caller, Live, Run, keep_cancelling
from retouch.jobs.lookup import JobSettings, Lookup
from retouch.jobs.records import Accepted, Ended, Records, derive_id, digest, require_job_id
from retouch.jobs.sweep import Sweeper
from retouch.jobs.webhooks import Webhooks
from retouch.logs import bind, event
from retouch.schema import EditRequest, Job, Progress

_log = logging.getLogger(__name__)
_CANCEL_S = 5.0
"""How long a cancellation waits for the step to end before it is answered."""


class Jobs:
    """The jobs of this process, and a view of all others. Belongs to one event loop.

    `require_ready` raises while no edit can run. `scale` shortens the time between heartbeats and
    between sweeps.
    """

    def __init__(
        self,
        records: Records,
        settings: JobSettings,
        *,
        run: Run,
        require_ready: Callable[[], object],
        webhooks: Webhooks,
        scale: float = 1.0,
    ) -> None:
        self._records = records
        self._settings = settings
        self._run = run
        self._require_ready = require_ready
        self._process = uuid.uuid4().hex[:16]
        self._heartbeat = Heartbeat(records, self._process, every_s=15.0 * scale)
        self._lookup = Lookup(records, self._heartbeat, settings)
        self._live: dict[str, Live] = {}
        self._beginning = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[None]] = set()
        self._beating: asyncio.Task[None] | None = None
        self._webhooks = webhooks
        self._sweeper = Sweeper(
            records, self._heartbeat, adopt=self._adopt, is_mine=self._is_mine, scale=scale
        )
        self._sweeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to deliver the webhooks of processes that died, where webhooks are offered."""
        if self._webhooks.is_configured:
            self._sweeping = asyncio.create_task(self._sweeper.run())

    async def close(self) -> None:
        """Wait until the ends of all jobs are written. Their edits must have ended, or do so."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._webhooks.close()
        for task in filter(None, (self._beating, self._sweeping)):
            if task.cancel():  # else it has ended, perhaps with a loop that is closed
                await asyncio.wait([task])

    async def accept(
        self, request: EditRequest, job_id: str, caller: Caller, *, is_new: bool = False
    ) -> Job:
        """Begin a job, or return it if this very request began it before. `is_new`: the id is ours.

        Raises:
            InvalidRequest: the id or a URL is not acceptable, or the answer would contain the file.
            SourceUnreachable: a URL has an address that is not public.
            JobConflict: the id belongs to another request.
            JobNotFound: its job has expired.
            Overloaded: too many jobs are unfinished, or webhooks undelivered.
            NotReady: no edit can run.
            StorageError: the records cannot be read or written.
        """
        require_job_id(job_id)
        self._require_acceptable(request)
        hashed = await self._records.run(lambda: digest(request))
        async with self._locks.setdefault(job_id, asyncio.Lock()):
            live = self._live.get(job_id)
            known = live.accepted if live else None
            if not (known or is_new):
                known = await self._records.accepted(job_id)
            if known:
                if not live and self._lookup.is_expired(known):
                    raise JobNotFound
                if (known.digest, known.owner) != (hashed, caller.owner):
                    raise JobConflict
                return live.view() if live else await self.get(job_id, caller.owner)
            accepted = Accepted.of(
                request,
                id=job_id,
                process=self._process,
                owner=caller.owner,
                digest=hashed,
                request_id=caller.request_id,
                created_at_s=time.time(),
            )
            return await self._begin(accepted, request, caller)

    async def accept_repeatable(self, request: EditRequest, key: str, caller: Caller) -> Job:
        """Begin the job of an Idempotency-Key, or return the one that it began before.

        The key begins the next job after a failure that may be retried, and after its retention.

        Raises:
            EditError: as `accept`.
        """
        name = partial(derive_id, caller.owner, key)
        return await accept_attempt(
            lambda attempt: self.accept(request, name(attempt), caller),
            lambda attempt: self._has_begun(name(attempt)),
        )

    async def get(self, job_id: str, owner: str) -> Job:
        """Return a job of any replica; a result has a new link.

        Raises:
            JobNotFound: there is none of this owner, or it has expired.
            StorageError: the records cannot be read.
        """
        if (live := self._live.get(job_id)) and live.accepted.owner == owner:
            return live.view()
        return await self._lookup.find(job_id, owner)

    async def watch(self, job_id: str, owner: str) -> AsyncGenerator[Job]:
        """Yield a job at once, after every change, and at last at its end.

        Raises:
            JobNotFound, StorageError: as `get`.
        """
        last = None
        while True:
            live = self._live.get(job_id)
            changed = live.changed if live else None
            job = await self.get(job_id, owner)
            if job != last:
                yield job
                last = job
            if job.answer:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.poll_s):
                    await (changed.wait() if changed else asyncio.Event().wait())

    async def wait(self, job_id: str, owner: str) -> Job:
        """Return a job once it has ended.

        Raises:
            JobNotFound, StorageError: as `get`.
        """
        async for job in self.watch(job_id, owner):
            last = job
        return last

    async def deliver(self, job_id: str, *, timeout_s: float) -> None:
        """Wait until the webhook of an ended job of this process is taken, at most `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while live := self._live.get(job_id):
                    await live.changed.wait()
                await self._webhooks.wait(job_id)

    async def cancel(self, job_id: str, owner: str) -> Job:
        """Cancel a job: here within a step, on another replica with its next heartbeat.

        Raises:
            JobNotFound, StorageError: as `get`.
        """
        job = await self.get(job_id, owner)
        if live := self._live.get(job_id):
            live.edit.cancel()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_S):
                    job = await self.wait(job_id, owner)
        elif not job.answer:
            await self._records.write(f"{job_id}/cancel", {})
        return job

    async def _begin(self, accepted: Accepted, request: EditRequest, caller: Caller) -> Job:
        self._require_ready()
        if len(self._live) + self._beginning >= self._settings.max_unfinished:
            raise Overloaded("too many jobs are unfinished (MAX_QUEUE)")
        if accepted.webhook:
            self._webhooks.require_room()
        self._beginning += 1
        try:
            await self._beat()
            await self._records.accept(accepted)
            return self._start(accepted, request, caller).view()
        finally:
            self._beginning -= 1

    async def _has_begun(self, job_id: str) -> bool:
        return job_id in self._live or await self._records.accepted(job_id) is not None

    def _require_acceptable(self, request: EditRequest) -> None:
        if request.response_format != "url":
            fault = "must be url: a job answers with a link"
            raise InvalidRequest.for_fields({"response_format": fault})
        require_destinations(request, allowed_hosts=self._settings.allowed_source_hosts)
        if request.webhook:
            self._webhooks.require(request.webhook)

    def _start(self, accepted: Accepted, request: EditRequest, caller: Caller) -> Live:
        def report(progress: Progress) -> None:
            live.progress = progress
            live.tell()
            self._webhooks.report(accepted, progress)

        edit = asyncio.ensure_future(self._run(request, accepted.id, caller, report))
        live = self._live[accepted.id] = Live(accepted, edit)
        task = asyncio.create_task(self._finish(live))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._ensure_beating()
        return live

    def _ensure_beating(self) -> None:
        if self._beating is None or self._beating.done():
            # Without a context: it serves all jobs, not the request or trace that began the first.
            self._beating = asyncio.create_task(self._keep_beating(), context=Context())

    def _is_mine(self, job_id: str) -> bool:
        return job_id in self._live or job_id in self._webhooks.sending

    async def _adopt(self, accepted: Accepted, ended: Ended) -> None:
        """Deliver the webhook of a dead process."""
        await self._beat()
        await self._records.write(f"webhooks/{accepted.id}/claim.{self._process}", {})
        event(_log, "webhook.adopted", job_id=accepted.id, state=ended.state)
        self._webhooks.start(accepted, ended)
        self._ensure_beating()

    async def _finish(self, live: Live) -> None:
        accepted = live.accepted
        with bind(accepted.request_id):
            await asyncio.wait([live.edit])
            ended = live.end(time.time())
            try:
                if recorded := await self._record(accepted, ended):
                    event(_log, "job.ended", job_id=accepted.id, state=recorded.state)
                    if accepted.webhook:
                        self._webhooks.start(accepted, recorded)
            finally:
                del self._live[accepted.id]
                live.tell()

    async def _record(self, accepted: Accepted, ended: Ended) -> Ended | None:
        """Write the end and return it, or None where another replica runs the job: its end counts.

        Without the lease the job may be reported as lost, and then it stays so.
        """
        while True:
            try:
                if await self._records.accepted(accepted.id) != accepted:
                    return None
                if not self._heartbeat.holds_lease:
                    ended = Ended.of_lost(accepted)
                await self._records.end(accepted.id, ended)
            except StorageError as error:
                event(_log, "job.not_recorded", level=logging.WARNING, code=error.code)
                await asyncio.sleep(min(self._settings.poll_s, self._heartbeat.left_in_slot_s))
            else:
                return ended

    async def _keep_beating(self) -> None:
        """Write a heartbeat in every slot while there is work, and cancel what is to be cancelled."""
        async with asyncio.TaskGroup() as group:
            reads = group.create_task(keep_cancelling(self._live, self._records, self._heartbeat))
            while self._live or self._webhooks.sending:
                try:
                    await self._beat()
                except StorageError as error:
                    event(_log, "job.heartbeat_failed", level=logging.WARNING, code=error.code)
                await asyncio.sleep(self._heartbeat.left_in_slot_s)
            self._beating = None  # a job that begins before the reads have ended begins anew
            reads.cancel()

    async def _beat(self) -> None:
        await self._heartbeat.beat({name: live.progress for name, live in self._live.items()})
