"""What both doors log of an edit that ended."""

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
    """Log `edit.failed`; a fault of ours as an error, with the trace of its `cause`."""
    broken = error.status >= _SERVER_FAULT
    event(
        _log,
        "edit.failed",
        level=logging.ERROR if broken else logging.INFO,
        cause=cause if broken else None,
        **{
            "reason": error.message,
            **error.context,  # its own reason says more
            "job_id": job_id,
            "type": error.type,
            "code": error.code,
        },
    )
