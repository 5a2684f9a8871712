"""Everything that touches internals of the Runpod SDK."""

import logging
from typing import Any

from runpod import RunPodLogger
from runpod.http_client import AsyncClientSession, get_auth_header
from runpod.serverless.modules.rp_http import send_result
from runpod.serverless.modules.worker_state import IS_LOCAL_TEST as IS_LOCAL_TEST  # noqa: PLC0414

from retouch.worker.progress import Message

_log = logging.getLogger("runpod")
# The SDK logs whole jobs and results at DEBUG, so nothing below INFO is passed on.
_LEVELS = {"INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


def get_credential() -> str:
    """Return the credential the SDK sends to the platform; the log redacts it."""
    header: str = get_auth_header()["Authorization"]  # type: ignore[no-untyped-call]
    return header


def request_refresh(config: dict[str, Any]) -> None:
    """Have the platform replace this worker once the current job's result is delivered.

    The SDK reads the key after each job: it then adds `stopPod` to the result and ends its loop.
    """
    config["refresh_worker"] = True


async def send_progress(job: dict[str, Any], message: Message) -> None:
    """Post a job's progress, as `runpod.serverless.progress_update` does in a thread of its own."""
    async with AsyncClientSession() as session:  # type: ignore[no-untyped-call]
        update = {"status": "IN_PROGRESS", "output": message}
        await send_result(session, update, job)  # type: ignore[no-untyped-call]


async def discard_progress(job: dict[str, Any], message: Message) -> None:
    """Send nothing: off the platform there is nobody to report to."""


def redirect_log() -> None:
    """Send the SDK's log lines through `logging`: as JSON, redacted, and none below INFO."""
    RunPodLogger.log = _log_for_sdk  # type: ignore[method-assign]  # there is no hook for it


def _log_for_sdk(
    sdk: RunPodLogger, message: object, message_level: str = "INFO", job_id: str | None = None
) -> None:
    level = _LEVELS.get(message_level, logging.DEBUG)
    if level >= _LEVELS.get(sdk.level, logging.INFO):
        fields = {"requestId": job_id} if job_id else {}
        _log.log(level, "%s", message, extra={"fields": fields})
