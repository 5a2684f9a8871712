"""Everything that touches the Runpod SDK's internals."""

import logging
from typing import Any

from runpod import RunPodLogger
from runpod.http_client import AsyncClientSession
from runpod.serverless.modules.rp_http import send_result

from retouch.worker.progress import Message

sdk_log = logging.getLogger("runpod")
# The SDK logs jobs and results whole at DEBUG, so nothing below INFO gets through.
_LEVELS = {"INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


async def send_progress(job: dict[str, Any], message: Message) -> None:
    """Post a job's progress, as `runpod.serverless.progress_update` does in a thread of its own."""
    async with AsyncClientSession() as session:  # type: ignore[no-untyped-call]
        update = {"status": "IN_PROGRESS", "output": message}
        await send_result(session, update, job)  # type: ignore[no-untyped-call]


def _log_for_sdk(
    sdk: RunPodLogger, message: object, message_level: str = "INFO", job_id: str | None = None
) -> None:
    level = _LEVELS.get(message_level, logging.DEBUG)
    if level >= _LEVELS.get(sdk.level, logging.INFO):
        fields = {"requestId": job_id} if job_id else {}
        sdk_log.log(level, "%s", message, extra={"fields": fields})


def redirect_sdk_log() -> None:
    """Have the SDK's lines written like ours: as JSON, redacted, and none below INFO."""
    RunPodLogger.log = _log_for_sdk  # type: ignore[method-assign]  # there is no hook for it
