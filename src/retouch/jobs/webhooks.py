"""Webhooks: the end of a job, signed as Standard Webhooks say, tried for six hours.

github.com/standard-webhooks/standard-webhooks: `webhook-id` names a message and is the same in every
try, the signature is HMAC-SHA256 over id, time of the try and body.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Mapping
from http import HTTPStatus

from retouch import tracing
from retouch.errors import DownloadFailed, InvalidRequest, Overloaded, StorageError
from retouch.jobs.records import Accepted, Ended, Records, to_text
from retouch.logs import event
from retouch.net.post import Poster
from retouch.net.url import SourceUrl
from retouch.schema import Progress

_log = logging.getLogger(__name__)
OFFSETS_S = (0, 5, 30, 120, 300, 900, 1800, 3600, 7200, 10800, 16200, 21600)
"""When a message is tried, after the end of its job: 12 times over 6 hours."""

PROGRESS_EVERY_S = 5.0
_TRY_S = 15.0
_CLOSE_S = 2.0
MAX_SENDING = 4096
"""Messages of one process that are not delivered yet; one takes some 10 kB for up to 6 hours."""
MAX_TRIES_AT_ONCE = 128


def message_id(accepted: Accepted) -> str:
    """Return the `webhook-id` of a job's end. A job that two processes ran has two ends."""
    return f"{accepted.id}.{accepted.process}"


def build_end(accepted: Accepted, ended: Ended) -> bytes:
    """Return the body for a job's end: the same bytes, whichever process sends it."""
    ended_at = to_text(ended.ended_at_s) if ended.ended_at_s else None
    job = {
        "id": accepted.id,
        "state": ended.state,
        "request_id": accepted.request_id,
        "created_at": to_text(accepted.created_at_s),
        "ended_at": ended_at,
        "progress": None,
        "answer": ended.answer,
    }
    moment = ended_at or to_text(accepted.created_at_s)
    return _pack(f"job.{ended.state}", moment, job)


def sign(secret: bytes, name: str, sent_at_s: int, body: bytes) -> str:
    """Return the `webhook-signature`, version 1: HMAC-SHA256 in base64."""
    content = f"{name}.{sent_at_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()


def plan_tries(began_s: float, now_s: float, *, scale: float = 1.0) -> list[float]:
    """Return when a message is tried: now, and then at what is left of the offsets from `began_s`.

    >>> [round(moment_s) for moment_s in plan_tries(0, 16000)]
    [16000, 16200, 21600]
    """
    moments_s = [began_s + scale * offset_s for offset_s in OFFSETS_S[1:]]
    return [now_s, *(moment_s for moment_s in moments_s if moment_s > now_s)]


class Webhooks:
    """Delivers messages. Belongs to one event loop.

    `secret` is the key of the signatures; empty: no request may name a webhook. `scale` shortens the
    time between tries.
    """

    def __init__(
        self, records: Records, poster: Poster, secret: bytes, *, scale: float = 1.0
    ) -> None:
        self._records = records
        self._poster = poster
        self._secret = secret
        self._scale = scale
        self._tries = asyncio.Semaphore(MAX_TRIES_AT_ONCE)
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, asyncio.Task[int]] = {}
        self._reported_at_s: dict[str, float] = {}

    @property
    def is_configured(self) -> bool:
        """Whether requests may name a webhook."""
        return bool(self._secret)

    @property
    def sending(self) -> frozenset[str]:
        """The jobs whose end is being delivered by this process."""
        return frozenset(self._sending)

    def require(self, url: str) -> None:
        """Require that messages may be sent to `url`. Looks up no name.

        Raises:
            InvalidRequest: WEBHOOK_SECRET is not set, or the URL is not acceptable.
        """
        if not self._secret:
            raise InvalidRequest.for_fields(
                {"webhook": "is not offered: WEBHOOK_SECRET is not set"}
            )
        self._poster.parse(url)

    def require_room(self) -> None:
        """Require that another message may wait for its receiver.

        Raises:
            Overloaded: too many do.
        """
        if len(self._sending) >= MAX_SENDING:
            raise Overloaded("too many webhooks are undelivered")

    def report(self, accepted: Accepted, progress: Progress) -> None:
        """Send progress if asked for: once, at most every 5 s, one message at a time."""
        if not accepted.webhook_progress or accepted.id in self._progress:
            return
        now_s = time.time()
        if now_s - self._reported_at_s.get(accepted.id, 0.0) < PROGRESS_EVERY_S * self._scale:
            return
        self._reported_at_s[accepted.id] = now_s
        data = {"id": accepted.id, "state": "running", "progress": progress.model_dump()}
        body = _pack("job.progress", to_text(now_s), data)
        name = f"{message_id(accepted)}.{int(1000 * now_s)}"
        task = asyncio.create_task(self._try(accepted, name, body))
        self._progress[accepted.id] = task
        task.add_done_callback(lambda _: self._progress.pop(accepted.id, None))

    def start(self, accepted: Accepted, ended: Ended) -> None:
        """Deliver the recorded end of a job in the background; no progress is sent after it."""
        self._reported_at_s.pop(accepted.id, None)
        if progress := self._progress.get(accepted.id):
            progress.cancel()
        if accepted.id not in self._sending:
            task = asyncio.create_task(self._deliver(accepted, ended))
            self._sending[accepted.id] = task
            task.add_done_callback(lambda _: self._sending.pop(accepted.id, None))

    async def wait(self, job_id: str) -> None:
        """Wait until the end of a job is delivered or given up."""
        if task := self._sending.get(job_id):
            await asyncio.wait([task])

    async def close(self) -> None:
        """Give messages being sent a moment; other processes deliver the rest."""
        if tasks := [*self._sending.values(), *self._progress.values()]:
            await asyncio.wait(tasks, timeout=_CLOSE_S)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _deliver(self, accepted: Accepted, ended: Ended) -> None:
        began_s = ended.ended_at_s or accepted.created_at_s
        tries = plan_tries(began_s, time.time(), scale=self._scale)
        body = build_end(accepted, ended)
        status = 0
        for number, moment_s in enumerate(tries):
            await asyncio.sleep(max(0.0, moment_s - time.time()))
            if number and await self._is_delivered(accepted.id):
                return
            status = await self._try(accepted, message_id(accepted), body)
            if _is_ok(status) or status == HTTPStatus.GONE:  # the receiver wants no more
                break
        is_ok = _is_ok(status)
        event(
            _log,
            "webhook.delivered" if is_ok else "webhook.given_up",
            level=logging.INFO if is_ok else logging.WARNING,
            job_id=accepted.id,
            status=status,
        )
        try:
            await self._records.write(f"webhooks/{accepted.id}/delivered", {"ok": is_ok})
        except StorageError as error:  # another process may deliver the same message again
            event(_log, "webhook.not_recorded", level=logging.WARNING, code=error.code)

    async def _try(self, accepted: Accepted, name: str, body: bytes) -> int:
        """Send a message once; return the status of the answer, or 0 without one."""
        status, reason = 0, "no_answer"
        try:
            url = self._poster.parse(accepted.webhook)
            async with self._tries:
                status = await self._send(url, name, body)
        except (DownloadFailed, InvalidRequest) as error:
            reason = error.code
        except TimeoutError:
            reason = "timed_out"
        if not _is_ok(status):
            event(
                _log,
                "webhook.failed",
                level=logging.WARNING,
                job_id=accepted.id,
                status=status,
                reason=reason if not status else "status",
            )
        return status

    async def _send(self, url: SourceUrl, name: str, body: bytes) -> int:
        sent_at_s = int(time.time())
        headers = {
            "webhook-id": name,
            "webhook-timestamp": str(sent_at_s),
            "webhook-signature": sign(self._secret, name, sent_at_s, body),
        }
        with tracing.span("webhook.send"):
            headers |= tracing.headers()
            return await self._poster.post(url, body, headers, timeout_s=_TRY_S)

    async def _is_delivered(self, job_id: str) -> bool:
        try:
            return await self._records.read(f"webhooks/{job_id}/delivered") is not None
        except StorageError:
            return False


def _pack(kind: str, moment: str, data: Mapping[str, object]) -> bytes:
    return json.dumps(
        {"type": kind, "timestamp": moment, "data": data}, separators=(",", ":")
    ).encode()


def _is_ok(status: int) -> bool:
    return HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
