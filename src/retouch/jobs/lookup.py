"""A job as its records in the store show it, whichever replica runs it."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from retouch.errors import InvalidRequest, JobNotFound
from retouch.jobs.heartbeat import SLOTS, Heartbeat
from retouch.jobs.records import Accepted, Ended, Records, describe, require_job_id, to_text
from retouch.schema import Job, Progress, Result


@dataclass(frozen=True, slots=True)
class JobSettings:
    """How long jobs are kept, how many of one process may be unfinished, and hosts exempt from the guard."""

    retention_s: float = 86400.0
    link_expires_in_s: int = 86400
    max_unfinished: int = 33
    poll_s: float = 2.0
    allowed_source_hosts: frozenset[str] = frozenset()


class Lookup:
    """Reads jobs."""

    def __init__(self, records: Records, heartbeat: Heartbeat, settings: JobSettings) -> None:
        self._records = records
        self._heartbeat = heartbeat
        self._settings = settings

    async def find(self, job_id: str, owner: str) -> Job:
        """Return a job; a result has a new link.

        Raises:
            JobNotFound: there is none of this owner, or it has expired.
            StorageError: the records cannot be read.
        """
        with suppress(InvalidRequest):
            require_job_id(job_id)
            accepted = await self._records.accepted(job_id)
            if accepted and accepted.owner == owner and not self.is_expired(accepted):
                return await self._read(accepted)
        raise JobNotFound

    async def _read(self, accepted: Accepted) -> Job:
        ended = await self._records.ended(accepted.id)
        if ended is None:
            beat = await self._heartbeat.find(accepted.process)
            age_s = time.time() - accepted.created_at_s
            is_new = age_s < 4 * SLOTS * self._heartbeat.every_s  # a beat may be older than the job
            if beat is not None and (is_new or accepted.id in beat.get("jobs", ())):
                return describe(accepted, progress=_read_progress(beat, accepted.id))
            # Ended since; or never begun, where the store failed only after it had the acceptance.
            ended = await self._records.ended(accepted.id) or Ended.of_lost(accepted)
        return await self._renew(describe(accepted, ended))

    async def _renew(self, job: Job) -> Job:
        """Return the job with new links to its results."""
        if job.answer is None or not (results := job.answer.all):
            return job
        expires_in_s = self._settings.link_expires_in_s
        expiry = {
            "expires_in": expires_in_s,
            "expires_at": to_text(time.time() + expires_in_s),
        }
        keys = [result.object_key for result in results]
        links = {key: await self._records.link(key, expires_in_s=expires_in_s) for key in keys}

        def renew(result: Result) -> Result:
            return result.model_copy(update=expiry | {"presigned_url": links[result.object_key]})

        return job.model_copy(update={"answer": job.answer.change_each(renew)})

    def is_expired(self, accepted: Accepted) -> bool:
        """Whether a job is over its retention."""
        return time.time() - accepted.created_at_s > self._settings.retention_s


def _read_progress(beat: dict[str, Any], job_id: str) -> Progress | None:
    found = beat.get("jobs", {}).get(job_id)
    return Progress.model_validate(found) if found else None
