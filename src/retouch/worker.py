"""The Runpod door: one job to one answer. `PYTHONPATH=src python -m retouch.worker` starts it."""

import argparse
import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from pydantic import ValidationError
from runpod import RunPodLogger, serverless
from runpod.http_client import AsyncClientSession, get_auth_header
from runpod.serverless.modules.rp_http import send_result
from runpod.serverless.modules.worker_state import IS_LOCAL_TEST

from retouch import logs
from retouch.contract import EditRequest, EditResult, Progress, error_body, invalid_request
from retouch.editor import Editor, ignore
from retouch.errors import (
    Cancelled,
    EditError,
    InternalError,
    MalformedBody,
    ModelError,
    StorageError,
)
from retouch.fitness import Start, Unfit, is_gpu_lost
from retouch.logs import bind, event
from retouch.outcomes import log_failure, log_success
from retouch.reporting import Message, Reporter

_log = logging.getLogger(__name__)
_sdk_log = logging.getLogger("runpod")
Answer = dict[str, Any]

MAX_ANSWER_BYTES = 8192
_SHORT_CHARACTERS = 200
_MAX_ID_CHARACTERS = 128
_LOCAL_JOB = "local_test"  # what the SDK calls every job of --test_input
# The SDK logs jobs and results whole at DEBUG, so nothing below INFO gets through.
_LEVELS = {"INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


async def send_progress(job: dict[str, Any], message: Message) -> None:
    """Post a job's progress, as `runpod.serverless.progress_update` does in a thread of its own."""
    async with AsyncClientSession() as session:  # type: ignore[no-untyped-call]
        update = {"status": "IN_PROGRESS", "output": message}
        await send_result(session, update, job)  # type: ignore[no-untyped-call]


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
    short = error.fresh()
    short.message, short.details = error.message[:_SHORT_CHARACTERS], {}
    return _pack(short, request_id)


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


def _log_for_sdk(
    sdk: RunPodLogger, message: object, message_level: str = "INFO", job_id: str | None = None
) -> None:
    level = _LEVELS.get(message_level, logging.DEBUG)
    if level >= _LEVELS.get(sdk.level, logging.INFO):
        fields = {"requestId": job_id} if job_id else {}
        _sdk_log.log(level, "%s", message, extra={"fields": fields})


def redirect_sdk_log() -> None:
    """Have the SDK's lines written like ours: as JSON, redacted, and none below INFO."""
    RunPodLogger.log = _log_for_sdk  # type: ignore[method-assign]  # there is no hook for it


def _build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="python -m retouch.worker",
        description="Edit images by instruction, as a Runpod serverless worker. Off the platform it "
        "runs one job, from --test_input or ./test_input.json, or the SDK's local server.",
        parents=[serverless.parser],
        add_help=False,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Check what the worker needs, then take jobs until the platform ends it."""
    options = _build_parser().parse_args(arguments)
    redirect_sdk_log()
    platform_secrets = [get_auth_header()["Authorization"]]  # type: ignore[no-untyped-call]
    logs.install("INFO", secrets=platform_secrets)  # after the SDK, which installs a handler too
    start = Start(platform_secrets=platform_secrets)
    is_local = bool(IS_LOCAL_TEST or options.test_input or options.rp_serve_api)
    worker = Worker(
        lambda: start.editor,
        build_reporter=None if is_local else lambda job: Reporter(partial(send_progress, job)),
    )
    worker.config["concurrency_modifier"] = lambda _: start.jobs_at_a_time
    try:
        for check in start.checks:
            if is_local:
                check()
            else:
                serverless.register_fitness_check(check)
        serverless.start(worker.config)
    except Unfit as error:
        raise SystemExit(f"the worker cannot start: {error}") from None
    finally:
        asyncio.run(start.exits.aclose())


if __name__ == "__main__":
    main()
