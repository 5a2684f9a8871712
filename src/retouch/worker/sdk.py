"""Everything that touches internals of the Runpod SDK."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from runpod import RunPodLogger
from runpod.http_client import AsyncClientSession, get_auth_header
from runpod.serverless.modules import rp_scale
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


def close_on_stop(close: Callable[[], Awaitable[None]]) -> None:
    """Have the SDK's loop call `close` when the worker is stopped, and end when it has returned.

    The SDK itself waits for its two long polls, up to 90 s, and never runs a job that comes in that
    time. Here the polls end at once.
    """

    class Scaler(rp_scale.JobScaler):
        closing: asyncio.Future[None] | None = None

        def kill_worker(self) -> None:
            super().kill_worker()  # type: ignore[no-untyped-call]
            self.closing = self.closing or asyncio.ensure_future(close())

        async def get_jobs(self, session: Any) -> None:
            await _run_until(self._shutdown_event, super().get_jobs(session))

        async def monitor_stop_signals(self, session: Any) -> None:
            await _run_until(self._shutdown_event, super().monitor_stop_signals(session))

        async def run(self) -> None:
            await super().run()  # type: ignore[no-untyped-call]
            if self.closing:
                await self.closing

    rp_scale.JobScaler = Scaler  # type: ignore[misc]  # there is no hook for it


async def _run_until(stopped: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, or cancel it once `stopped` is set."""
    working, stop = asyncio.ensure_future(work), asyncio.ensure_future(stopped.wait())
    await asyncio.wait({working, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not working.done():
        working.cancel()
        await asyncio.wait([working])
    elif not working.cancelled():
        working.result()


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
