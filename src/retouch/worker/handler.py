"""The Runpod door: one job to one answer. `PYTHONPATH=src python -m retouch.worker` starts it."""

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from pydantic import ValidationError

from retouch.editing.editor import Editor
from retouch.editing.events import log_failure, log_success
from retouch.editing.steps import ignore
from retouch.errors import (
    Cancelled,
    EditError,
    InternalError,
    MalformedBody,
    ModelError,
    StorageError,
)
from retouch.logs import bind, event
from retouch.schema import EditRequest, EditResult, Progress, error_body, invalid_request
from retouch.worker.progress import Reporter
from retouch.worker.startup import is_gpu_lost

_log = logging.getLogger(__name__)
Answer = dict[str, Any]

MAX_ANSWER_BYTES = 8192
_SHORT_CHARACTERS = 200
_MAX_ID_CHARACTERS = 128
_LOCAL_JOB = "local_test"  # what the SDK calls every job of --test_input


def _read_id(named: object) -> str:
    """Return the platform's name for a job, or one of ours: for what is none, and for what is too odd."""
    if named in (None, "", _LOCAL_JOB):
        return uuid.uuid4().hex
    name = str(named)
    if len(name) <= _MAX_ID_CHARACTERS and name.isprintable():
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


class Worker:
    """Answers jobs with an editor."""

    def __init__(
        self,
        editor: Callable[[], Editor],
        *,
        build_reporter: Callable[[dict[str, Any]], Reporter] | None = None,
        is_gpu_lost: Callable[[], bool] = is_gpu_lost,
    ) -> None:
        self._editor = editor
        self._build_reporter = build_reporter
        self._is_gpu_lost = is_gpu_lost
        self.config: dict[str, Any] = {"handler": self.handle}
        """What `runpod.serverless.start` takes; it reads `refresh_worker` after each job."""

    async def handle(self, job: dict[str, Any]) -> Answer:
        """Return the envelope of success, or of failure in the form that Runpod needs.

        Only a cancellation is raised: the SDK would send any other trace to the caller.
        """
        job_id = _read_id(job.get("id"))
        with bind(job_id, private=_read_prompts(job.get("input"))):
            try:
                async with self._reporting(job) as progress:
                    result = await self._answer(job.get("input"), job_id, progress)
            except asyncio.CancelledError:
                log_failure(Cancelled("the platform stopped the job"), job_id)
                raise
            except Exception as raised:  # noqa: BLE001 - an entry point, where nothing may escape
                return await self._fail(raised, job_id)
            log_success(result)
            return build_success(result)

    async def _answer(
        self, body: object, job_id: str, progress: Callable[[Progress], None]
    ) -> EditResult:
        request = read_input(body)
        editor = self._editor()
        try:
            found = await editor.find(request, job_id=job_id, request_id=job_id)
        except StorageError as error:  # what a store may not tell costs time, not the job
            event(_log, "result.unknown", level=logging.WARNING, code=error.code, **error.context)
            found = None
        return found or await editor.run(
            request, job_id=job_id, request_id=job_id, progress=progress
        )

    @asynccontextmanager
    async def _reporting(self, job: dict[str, Any]) -> AsyncIterator[Callable[[Progress], None]]:
        if self._build_reporter is None:
            yield ignore
            return
        reporter = self._build_reporter(job)
        async with reporter.running():
            yield reporter.tell

    async def _fail(self, raised: Exception, job_id: str) -> Answer:
        error = raised if isinstance(raised, EditError) else InternalError("an internal error")
        log_failure(error, job_id, cause=raised)
        may_be_lost = isinstance(error, ModelError | InternalError)
        if may_be_lost and await asyncio.to_thread(self._is_gpu_lost):
            event(_log, "gpu.lost", level=logging.CRITICAL)
            self.config["refresh_worker"] = True
        return build_failure(error, request_id=job_id)


def read_input(body: object) -> EditRequest:
    """Return the request in a job's input.

    Raises:
        MalformedBody: it is not one JSON object.
        InvalidRequest: fields are wrong; each is named.
    """
    if not isinstance(body, dict):
        raise MalformedBody("input must be one JSON object")
    try:
        return EditRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error) from None


def build_success(result: EditResult) -> Answer:
    """Return `result` as JSON; notes are left out of one that would be over the limit."""
    answer = result.model_dump(mode="json")
    if len(json.dumps(answer)) > MAX_ANSWER_BYTES:
        answer["result"]["meta"]["notes"] = []
    return answer


def build_failure(error: EditError, *, request_id: str) -> Answer:
    """Return `error` as Runpod needs it: the error body as a string, and its fields beside it.

    An object under `error` makes a failed job count as completed, without output
    (runpod/runpod-python#299). Details are left out of a body that would be over the limit.
    """
    answer = _pack(error, request_id)
    if len(json.dumps(answer)) <= MAX_ANSWER_BYTES:
        return answer
    return _pack(type(error)(error.message[:_SHORT_CHARACTERS]), request_id)


def _pack(error: EditError, request_id: str) -> Answer:
    body = error_body(error, request_id=request_id).model_dump(mode="json")
    return {
        "error": json.dumps(body, separators=(",", ":")),
        "status": body["status"],
        **body["error"],
    }


def _read_prompts(body: object) -> list[str]:
    """Return what must stay out of the log, before anybody has judged the input."""
    if not isinstance(body, dict):
        return []
    texts = (body.get(name) for name in ("prompt", "negative_prompt"))
    return [text for text in texts if isinstance(text, str)]
