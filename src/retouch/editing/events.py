"""Log events for finished and failed edits."""

import logging

from retouch.errors import EditError
from retouch.logs import event
from retouch.schema import EditResult

_log = logging.getLogger(__name__)


def log_success(result: EditResult) -> None:
    """Log `edit.finished`, with the time of each phase in milliseconds, of all results together."""
    meta = result.result.meta
    event(
        _log,
        "edit.finished",
        job_id=meta.job_id,
        source_cached=meta.source.cached,
        reused=meta.reused,
        profile=meta.profile,
        dtype=meta.dtype,
        steps=meta.num_inference_steps,
        width=meta.width,
        height=meta.height,
        results=len(result.all),
        **{f"{phase}_ms": ms for phase, ms in result.sum_timings().items()},
    )


def log_failure(error: EditError, job_id: str, *, cause: Exception | None = None) -> None:
    """Log `edit.failed` at the level of the error, a fault of ours with the trace of `cause`."""
    event(
        _log,
        "edit.failed",
        level=error.log_level,
        cause=cause if error.log_level >= logging.ERROR else None,
        **{
            "reason": error.message,
            **error.context,  # an error's own `reason` is more exact
            "job_id": job_id,
            "type": error.type,
            "code": error.code,
        },
    )
