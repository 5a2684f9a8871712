"""One Runpod job to one answer."""

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from retouch import tracing
from retouch.editing.events import log_failure, log_success
from retouch.editing.result import Finished
from retouch.errors import (
    Cancelled,
    EditError,
    InternalError,
    MalformedBody,
    ModelError,
    StorageError,
    WorkerLost,
)
from retouch.jobs.build import build_jobs
from retouch.jobs.jobs import Jobs
from retouch.jobs.live import Caller, Run
from retouch.lifecycle import ModelHost, State
from retouch.logs import bind, event
from retouch.schema import (
    EditRequest,
    EditResult,
    Progress,
    error_body,
    invalid_request,
    restore_error,
)
from retouch.worker.progress import Reporter
from retouch.worker.startup import is_gpu_lost

_log = logging.getLogger(__name__)
Answer = dict[str, Any]

MAX_ANSWER_BYTES = 32768
MAX_FILE_CHARACTERS = 9_000_000
_FILE_TOO_LARGE = "the image is too large for b64_json on Runpod: it is at presigned_url"
_SHORT_CHARACTERS = 200
_MAX_ID_CHARACTERS = 128
_WEBHOOK_S = 10.0
_LOCAL_JOB = "local_test"  # the id that the SDK gives every job of --test_input


class Worker:
    """Answers jobs with the host's editor.

    `refresh` is called when only another process can edit: the model hangs or the GPU is lost.
    """

    def __init__(
        self,
        host: ModelHost,
        *,
        refresh: Callable[[], None],
        build_reporter: Callable[[dict[str, Any]], Reporter],
        is_gpu_lost: Callable[[], bool] = is_gpu_lost,
        build_jobs: Callable[[ModelHost, Run], Jobs] = build_jobs,
    ) -> None:
        self._host = host
        self._refresh = refresh
        self._build_reporter = build_reporter
        self._is_gpu_lost = is_gpu_lost
        self._jobs = build_jobs(host, self._edit)
        self._has_begun = False

    async def handle(self, job: dict[str, Any]) -> Answer:
        """Return the result, or the error in the form that Runpod needs.

        Raises only `CancelledError`: the SDK would send the traceback of anything else to the caller.
        """
        job_id = _choose_id(job.get("id"))
        if not self._has_begun:
            self._has_begun = True
            self._jobs.start()  # here, because it needs the event loop of the SDK
        body, traceparent = _split_trace(job.get("input"))
        with tracing.continued(traceparent), bind(job_id, private=_read_prompts(body)):
            try:
                async with self._build_reporter(job).running() as report:
                    result = await self._run(body, job_id, report)
            except asyncio.CancelledError:
                log_failure(Cancelled("the platform stopped the job"), job_id)
                raise
            except Exception as raised:  # noqa: BLE001 - an entry point, where nothing may escape
                return await self._fail(raised, job_id)
            log_success(result)
            return build_success(result)

    async def _run(
        self, body: object, job_id: str, progress: Callable[[Progress], None]
    ) -> EditResult:
        request = read_input(body)
        caller = Caller(owner="", request_id=job_id)
        if request.webhook:
            return await self._run_recorded(request, caller, progress)
        return await self._edit(request, job_id, caller, progress)

    async def _edit(
        self,
        request: EditRequest,
        _: str,
        caller: Caller,
        progress: Callable[[Progress], None],
    ) -> EditResult:
        """Return what an earlier attempt at the platform's job stored; edit what is missing."""
        job_id, editor = caller.request_id, self._host.editor
        found: list[Finished | None] = []
        try:
            found = await editor.find(request, job_id=job_id, request_id=job_id)
        except StorageError as error:  # editing again costs time; refusing would cost the job
            event(_log, "result.unknown", level=logging.WARNING, code=error.code, **error.context)
        made = [one for one in found if one]
        if made and len(made) == len(found):
            return editor.answer(made)
        return await self._host.run(
            request, job_id=job_id, request_id=job_id, progress=progress, found=found
        )

    async def _run_recorded(
        self, request: EditRequest, caller: Caller, progress: Callable[[Progress], None]
    ) -> EditResult:
        """Edit as a job with records, so that another worker sends its webhook if this one dies.

        The webhook has a moment before the answer, after which the platform may stop the worker.
        """
        while True:
            job = await self._jobs.accept_repeatable(request, caller.request_id, caller)
            try:
                async for seen in self._jobs.watch(job.id, ""):
                    job = seen
                    if job.progress:
                        progress(job.progress)
            except asyncio.CancelledError:
                await self._jobs.cancel(job.id, "")
                raise
            if isinstance(job.answer, EditResult):
                await self._jobs.deliver(job.id, timeout_s=_WEBHOOK_S)
                return job.answer
            assert job.answer is not None  # noqa: S101 - the job has ended
            error = restore_error(job.answer)
            if not isinstance(error, WorkerLost):
                await self._jobs.deliver(job.id, timeout_s=_WEBHOOK_S)
                raise error

    async def _fail(self, raised: Exception, job_id: str) -> Answer:
        error = raised if isinstance(raised, EditError) else InternalError()
        log_failure(error, job_id, cause=raised)
        if self._host.state is State.DEFUNCT:
            self._refresh()
        elif isinstance(error, ModelError | InternalError) and await asyncio.to_thread(
            self._is_gpu_lost
        ):
            event(_log, "gpu.lost", level=logging.CRITICAL)
            self._refresh()
        return build_failure(error, request_id=job_id)


def read_input(body: object) -> EditRequest:
    """Return the request in a job's input.

    Raises:
        MalformedBody: the input is not one JSON object.
        InvalidRequest: fields are wrong; each is named.
    """
    if not isinstance(body, dict):
        raise MalformedBody("input must be one JSON object")
    try:
        return EditRequest.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error) from None


def build_success(result: EditResult) -> Answer:
    """Return `result` as JSON, without its notes where it would be over `MAX_ANSWER_BYTES`.

    Beside them images as base64 may have `MAX_FILE_CHARACTERS` together; those beyond are left out
    with a note, because Runpod takes no answer over 10 MB.
    """
    answer = result.model_dump(mode="json")
    results = [answer["result"], *answer.get("results", [])]
    files = [one.pop("b64_json", "") for one in results]
    if len(json.dumps(answer)) > MAX_ANSWER_BYTES:
        for one in results:
            one["meta"]["notes"] = []
    left = MAX_FILE_CHARACTERS
    for one, file in zip(results, files, strict=True):
        if len(file) > left:
            one["meta"]["notes"].append(_FILE_TOO_LARGE)
        elif file:
            one["b64_json"] = file
            left -= len(file)
    return answer


def build_failure(error: EditError, *, request_id: str) -> Answer:
    """Return the error body as a string, as Runpod needs it, with its fields beside it.

    An object under `error` makes a failed job count as completed, without output
    (runpod/runpod-python#299). Details are left out where the answer would be over
    `MAX_ANSWER_BYTES`.
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


def _choose_id(named: object) -> str:
    """Return a safe job id: the platform's, a hash of it, or a new one where it names none."""
    if named in (None, "", _LOCAL_JOB):
        return uuid.uuid4().hex
    name = str(named)
    if len(name) <= _MAX_ID_CHARACTERS and name.isprintable():
        return name
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _split_trace(body: object) -> tuple[object, object]:
    """Return an unchecked input without its `traceparent`, which HTTP has as a header, and that."""
    if not isinstance(body, dict):
        return body, None
    return {name: value for name, value in body.items() if name != "traceparent"}, body.get(
        "traceparent"
    )


def _read_prompts(body: object) -> list[str]:
    """Return the prompts of an unchecked input; the log must not show them."""
    if not isinstance(body, dict):
        return []
    texts = (body.get(name) for name in ("prompt", "negative_prompt"))
    return [text for text in texts if isinstance(text, str)]
