"""What the store holds of a job: write-once JSON objects, and the job as callers see it.

Backblaze B2 keeps every version of an object and has no conditional PUT, so no object is changed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from retouch import tracing
from retouch.errors import EditError, InvalidRequest, StorageError, WorkerLost
from retouch.schema import EditRequest, EditResult, Job, Progress, error_body
from retouch.storage.port import Store

T = TypeVar("T")
R = TypeVar("R", bound="Accepted | Ended")
EndState = Literal["completed", "failed", "cancelled"]

_ID = re.compile(r"[0-9a-z][0-9a-z_-]{0,127}")
_RESERVED = {"alive", "webhooks"}
_MAX_RECORD_BYTES = 1 << 20
_MAX_KEYS = 100_000
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that `process` runs. `digest` is the hash of its request, `owner` the API key's name."""

    id: str
    process: str
    owner: str
    digest: str
    request_id: str
    created_at_s: float
    webhook: str = ""
    webhook_progress: bool = False

    @classmethod
    def of(cls, request: EditRequest, **more: Any) -> "Accepted":
        """Return the acceptance of a request; `more` are the fields that it does not say."""
        return cls(webhook=request.webhook or "", webhook_progress=request.webhook_progress, **more)


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a job. `answer` is the body that `POST /edit` gives; `ended_at_s` None: it was lost."""

    state: EndState
    ended_at_s: float | None
    answer: dict[str, Any]

    @classmethod
    def of_result(cls, result: EditResult, now_s: float) -> "Ended":
        """Return the end of a job that succeeded."""
        return cls("completed", now_s, result.model_dump(mode="json"))

    @classmethod
    def of_error(cls, error: EditError, now_s: float, *, request_id: str) -> "Ended":
        """Return the end of a job that failed or was cancelled."""
        state: EndState = "cancelled" if error.type == "Cancelled" else "failed"
        return cls(state, now_s, error_body(error, request_id=request_id).model_dump(mode="json"))

    @classmethod
    def of_lost(cls, accepted: Accepted) -> "Ended":
        """Return the end of a job whose process died: the same bytes, whoever writes it."""
        body = error_body(WorkerLost(), request_id=accepted.request_id).model_dump(mode="json")
        return cls("failed", None, body)


def require_job_id(job_id: str) -> None:
    """Require an id that can be part of a key.

    Raises:
        InvalidRequest: it cannot.
    """
    if not _ID.fullmatch(job_id) or job_id in _RESERVED:
        fault = "must be 1 to 128 of a-z, 0-9, - and _, begin with a letter or a digit, and not be alive or webhooks"
        raise InvalidRequest.for_fields({"id": fault})


def derive_id(owner: str, key: str, attempt: int) -> str:
    """Return the job id of an Idempotency-Key; keys of different owners never meet.

    >>> derive_id("", "a", 0) == derive_id("", "a", 0) != derive_id("", "a", 1)
    True
    """
    return hashlib.sha256(json.dumps([owner, key, attempt]).encode()).hexdigest()[:32]


def digest(request: EditRequest) -> str:
    """Hash a request, an upload by its contents."""
    return hashlib.sha256(request.model_dump_json().encode()).hexdigest()


def describe(
    accepted: Accepted, ended: Ended | None = None, progress: Progress | None = None
) -> Job:
    """Return the job as callers see it; before the model works on it, it is queued."""
    is_queued = progress is None or progress.stage in ("source", "queue")
    return Job(
        id=accepted.id,
        state=ended.state if ended else "queued" if is_queued else "running",
        request_id=accepted.request_id,
        created_at=to_text(accepted.created_at_s),
        ended_at=to_text(ended.ended_at_s) if ended and ended.ended_at_s else None,
        progress=None if ended else progress,
        answer=Job.parse_answer(ended.answer) if ended else None,
    )


def to_text(moment_s: float) -> str:
    """Return Unix time as RFC 3339 in UTC, in whole seconds."""
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Records:
    """The objects of all jobs in a store, read and written in threads of their own.

    They answer until the process ends, as callers wait for jobs of other processes.
    """

    def __init__(self, store: Callable[[], Store], *, prefix: str) -> None:
        """`store` gives the store, or raises while it is not open."""
        self._store = store
        self._prefix = f"{prefix}jobs/"
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="jobs")
        self._urgent = ThreadPoolExecutor(1, thread_name_prefix="jobs-urgent")

    async def accepted(self, job_id: str) -> Accepted | None:
        """Return the job's acceptance, or None."""
        return await self._read_as(Accepted, f"{job_id}/accepted")

    async def ended(self, job_id: str) -> Ended | None:
        """Return the job's end, or None."""
        return await self._read_as(Ended, f"{job_id}/ended")

    async def accept(self, accepted: Accepted) -> None:
        """Write a job's acceptance, and before it that its webhook is due."""
        if accepted.webhook:
            await self.write(f"webhooks/{accepted.id}/due", {})
        await self.write(f"{accepted.id}/accepted", asdict(accepted))

    async def end(self, job_id: str, ended: Ended) -> None:
        """Write a job's end."""
        await self.write(f"{job_id}/ended", asdict(ended))

    async def read(self, name: str) -> dict[str, Any] | None:
        """Return an object, or None if there is none.

        Raises:
            StorageError: it cannot be read, or is damaged.
        """
        key = self._prefix + name
        found = await self.run(
            lambda: self._store().get(key, max_bytes=_MAX_RECORD_BYTES, timeout_s=_TIMEOUT_S)
        )
        if found is None:
            return None
        try:
            value = json.loads(found.body)
        except ValueError as error:
            raise StorageError("the record of a job is damaged", key=key) from error
        return value if isinstance(value, dict) else {}

    async def write(self, name: str, value: Mapping[str, Any], *, is_urgent: bool = False) -> None:
        """Write an object. An urgent one does not wait behind other calls.

        Raises:
            StorageError: it could not be written.
        """
        body = json.dumps(value).encode()
        await tracing.run_in(
            self._urgent if is_urgent else self._threads,
            lambda: self._store().put(
                self._prefix + name,
                body,
                content_type="application/json",
                metadata={},
                timeout_s=_TIMEOUT_S,
            ),
        )

    async def list(self, folder: str) -> list[str]:
        """Return the names of the objects in a folder of the records, without it.

        Raises:
            StoreDenied: the S3 key may not list the bucket.
            StorageError: they cannot be read.
        """
        prefix = self._prefix + folder
        keys = await self.run(
            lambda: self._store().list_keys(prefix, max_keys=_MAX_KEYS, timeout_s=_TIMEOUT_S)
        )
        return [key.removeprefix(prefix) for key in keys]

    async def link(self, key: str, *, expires_in_s: int) -> str:
        """Sign a link to a result.

        Raises:
            StorageError: as `Store.link`.
        """
        return await self.run(lambda: self._store().link(key, expires_in_s=expires_in_s))

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call of the store in a thread."""
        return await tracing.run_in(self._threads, call)

    async def _read_as(self, kind: type[R], name: str) -> R | None:
        value = await self.read(name)
        try:
            return None if value is None else kind(**value)
        except TypeError as error:
            raise StorageError("the record of a job is damaged", key=name) from error
