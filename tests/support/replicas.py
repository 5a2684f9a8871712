"""Replicas that share one store, in one process: a host, its edits and its jobs each."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook

from retouch.errors import StoreUnavailable
from retouch.jobs.jobs import Jobs
from retouch.jobs.live import Caller, Run
from retouch.jobs.lookup import JobSettings
from retouch.jobs.records import Records
from retouch.jobs.webhooks import Webhooks
from retouch.net.limits import FetchLimits
from retouch.net.post import Poster
from retouch.net.url import SourceUrl
from retouch.schema import EditRequest, EditResult, Progress
from retouch.settings import decode_webhook_secret
from support.fakes import FakeStore, House

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - the specification's
HOOK = "https://hooks.example/done?token=s3cr3t"
CALLER = Caller(owner="", request_id="r-1")


@dataclass
class FakeReceiver:
    """Takes webhooks, verifies each with the reference library, and answers with `statuses` in turn.

    A silent one takes none and never answers; `waiting` are its callers.
    """

    is_silent: bool = False
    waiting: int = 0
    statuses: list[int] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    bodies: dict[str, set[bytes]] = field(default_factory=dict)

    def take(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        assert url == HOOK
        self.taken.append(Webhook(SECRET).verify(body, dict(headers)))
        self.ids.append(headers["webhook-id"])
        self.headers.append(dict(headers))
        self.bodies.setdefault(headers["webhook-id"], set()).add(body)
        return self.statuses.pop(0) if self.statuses else 200


class Replica:
    """A process that edits; heartbeats are as far apart as `beat_s` says.

    `die` ends it as a kill does: nothing more is written or sent.
    """

    def __init__(
        self,
        store: FakeStore,
        *,
        beat_s: float = 1.0,
        receiver: FakeReceiver | None = None,
        webhook_scale: float | None = None,
        run: Run | None = None,
        records: type[Records] = Records,
        **settings: Any,
    ) -> None:
        self.is_dead = False
        self.receiver = receiver or FakeReceiver()
        self.house = House(store=store)
        self.not_ready: Exception | None = None
        kept = records(lambda: self._reach(store), prefix="p/")
        scale = beat_s / 15
        self.jobs = Jobs(
            kept,
            JobSettings(**({"poll_s": 0.01} | settings)),
            run=run or self._run,
            require_ready=self._require_ready,
            webhooks=Webhooks(
                kept,
                self,
                decode_webhook_secret(SECRET) if receiver else b"",
                scale=webhook_scale or scale,
            ),
            scale=scale,
        )

    async def _run(
        self,
        request: EditRequest,
        job_id: str,
        caller: Caller,
        progress: Callable[[Progress], None],
    ) -> EditResult:
        return await self.house.editor.run(
            request, job_id=job_id, request_id=caller.request_id, progress=progress
        )

    def die(self) -> None:
        self.is_dead = True

    def parse(self, text: str) -> SourceUrl:
        return Poster(FetchLimits()).parse(text)

    async def post(
        self, url: SourceUrl, body: bytes, headers: Mapping[str, str], *, timeout_s: float
    ) -> int:
        if self.is_dead or self.receiver.is_silent:
            self.receiver.waiting += 1
            await asyncio.get_running_loop().create_future()
        return self.receiver.take(url.canonical, body, headers)

    def _reach(self, store: FakeStore) -> FakeStore:
        if self.is_dead:
            raise StoreUnavailable("a dead process reaches nothing")
        return store

    def _require_ready(self) -> None:
        if self.not_ready:
            raise self.not_ready
