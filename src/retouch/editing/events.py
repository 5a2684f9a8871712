"""Log events for finished and failed edits."""

import logging

from retouch.errors import EditError
from retouch.logs import event
from retouch.schema import EditResult

_log = logging.getLogger(__name__)
_SERVER_FAULT = 500


def log_success(result: EditResult) -> None:
    """Log `edit.finished`, with the time of each phase in milliseconds."""
    meta = result.result.meta
    event(
        _log,
        "edit.finished",
        job_id=meta.job_id,
        source_cached=meta.source.cached,
        steps=meta.num_inference_steps,
        width=meta.width,
        height=meta.height,
        **{f"{phase}_ms": ms for phase, ms in meta.timings_ms.model_dump().items()},
    )


def log_failure(error: EditError, job_id: str, *, cause: Exception | None = None) -> None:
    """Log `edit.failed`: server faults at ERROR with the traceback of `cause`, others at INFO."""
    is_server_fault = error.status >= _SERVER_FAULT
    event(
        _log,
        "edit.failed",
        level=logging.ERROR if is_server_fault else logging.INFO,
        cause=cause if is_server_fault else None,
        **{
            "reason": error.message,
            **error.context,  # an error's own `reason` is more exact
            "job_id": job_id,
            "type": error.type,
            "code": error.code,
        },
    )
