"""Runpod's platform on 127.0.0.1: it gives jobs to the SDK's real loop and serves callers.

The worker's routes (job-take, job-take-batch, job-stop, job-done, job-stream, ping) follow the SDK's
own code; the caller's routes (run, status, cancel) follow Runpod's documentation.
"""

import asyncio
import json
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

ENDPOINT = "endpoint1"
API_KEY = "rpa-key-77c1e0"
WORKER_KEY = "worker-key-3ad90b"
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
_WAIT_S = 60.0


@dataclass
class Job:
    """One job: its input, and every message received for it."""

    id: str
    input: Any
    state: str = "IN_QUEUE"
    output: Any = None
    error: Any = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    taken_at_s: float = 0.0
    done_at_s: float = 0.0

    @property
    def results(self) -> list[dict[str, Any]]:
        return [message for message in self.messages if message.get("status") != "IN_PROGRESS"]

    @property
    def progress(self) -> list[dict[str, Any]]:
        return [m["output"] for m in self.messages if m.get("status") == "IN_PROGRESS"]

    def public(self) -> dict[str, Any]:
        """Its status as a caller sees it."""
        body = {"id": self.id, "status": self.state, "output": self.output, "error": self.error}
        return {name: value for name, value in body.items() if value is not None}


class Platform:
    """The platform, in a thread of its own. A poll without news is held for `hold_s`."""

    def __init__(self, *, hold_s: float = 1.0) -> None:
        self.jobs: dict[str, Job] = {}
        self.pings: list[dict[str, str]] = []
        self.batches: list[int] = []
        self.stopped_at_s: dict[str, float] = {}
        self.progress_delay_s = 0.0
        self.is_polled = False
        self._hold_s = hold_s
        self._queue: deque[Job] = deque()
        self._stops: deque[str] = deque()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2"

    @property
    def environment(self) -> dict[str, str]:
        """The environment the platform sets for a worker, without the SDK's checks, which need the internet and a GPU."""
        base = f"{self.url}/{ENDPOINT}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": "pod1",
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_AI_API_KEY": WORKER_KEY,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def submit(self, body: object, *, job_id: str | None = None) -> Job:
        job = Job(job_id or f"{uuid.uuid4()}-e1", body)
        self.jobs[job.id] = job
        self._queue.append(job)
        return job

    def retry(self, job: Job) -> Job:
        """Run a job again, under its own id."""
        return self.submit(job.input, job_id=job.id)

    def stop(self, job: Job) -> None:
        """Cancel a job, and tell the worker that runs it."""
        if job in self._queue:
            self._queue.remove(job)
        elif job.state == "IN_PROGRESS":
            self._stops.append(job.id)
        job.state = "CANCELLED"

    def wait(self, job: Job) -> Job:
        """Wait for a job's final state."""
        self.wait_for(lambda: job.state in FINAL)
        return job

    def wait_for(self, is_so: Callable[[], object]) -> None:
        give_up_at_s = time.monotonic() + _WAIT_S
        while not is_so():
            assert time.monotonic() < give_up_at_s, [job.public() for job in self.jobs.values()][
                -5:
            ]
            time.sleep(0.01)

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        base = "/v2/{endpoint}"
        app.add_routes(
            [
                web.get(base + "/job-take/{worker}", self._take),
                web.get(base + "/job-take-batch/{worker}", self._take),
                web.get(base + "/job-stop/{worker}", self._tell_stops),
                web.post(base + "/job-done/{worker}/{id}", self._done),
                web.post(base + "/job-stream/{worker}/{id}", self._done),
                web.get(base + "/ping/{worker}", self._ping),
                web.post(base + "/run", self._run),
                web.get(base + "/status/{id}", self._status),
                web.post(base + "/cancel/{id}", self._cancel),
            ]
        )
        # A poll whose worker has hung up takes no job.
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _end(self) -> None:
        await self._runner.cleanup()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _hold(self, has_news: Callable[[], object]) -> None:
        for _ in range(int(self._hold_s / 0.02)):
            if has_news():
                return
            await asyncio.sleep(0.02)

    async def _take(self, request: web.Request) -> web.StreamResponse:
        batched = "job-take-batch" in request.path
        size = int(request.query.get("batch_size", "1"))
        self.is_polled = True
        try:
            await self._hold(lambda: self._queue)
        finally:  # also where the worker hangs up
            self.is_polled = False
        taken = [self._queue.popleft() for _ in range(min(size, len(self._queue)))]
        if not taken:
            return web.Response(status=204)
        for job in taken:
            job.state, job.taken_at_s = "IN_PROGRESS", time.monotonic()
        self.batches.append(len(taken))
        bodies = [{"id": job.id, "input": job.input} for job in taken]
        return web.json_response(bodies if batched else bodies[0])

    async def _tell_stops(self, _: web.Request) -> web.StreamResponse:
        await self._hold(lambda: self._stops)
        if not self._stops:
            return web.Response(status=204)
        ids = [self._stops.popleft() for _ in range(len(self._stops))]
        self.stopped_at_s |= dict.fromkeys(ids, time.monotonic())
        return web.json_response({"jobsToStop": ids})

    async def _done(self, request: web.Request) -> web.StreamResponse:
        job = self.jobs[request.match_info["id"]]
        message = json.loads(await request.text())
        if message.get("status") == "IN_PROGRESS":
            await asyncio.sleep(self.progress_delay_s)
        job.messages.append(message)
        job.output = message.get("output")
        if message.get("status") == "IN_PROGRESS":
            job.state = "IN_PROGRESS"  # as in runpod/runpod-python#250: the later one counts
        elif isinstance(message.get("error"), str):
            job.state, job.error = "FAILED", message["error"]
        else:
            # An object as error: completed, and without output (runpod/runpod-python#299).
            job.output = None if "error" in message else job.output
            job.state = "COMPLETED"
        job.done_at_s = time.monotonic()
        return web.Response()

    async def _ping(self, request: web.Request) -> web.StreamResponse:
        self.pings.append(dict(request.query))
        return web.Response()

    def _require_key(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {API_KEY}":
            raise web.HTTPUnauthorized
        if request.match_info["endpoint"] != ENDPOINT:
            raise web.HTTPNotFound

    def _find(self, request: web.Request) -> Job:
        self._require_key(request)
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            raise web.HTTPNotFound
        return job

    async def _run(self, request: web.Request) -> web.StreamResponse:
        self._require_key(request)
        return web.json_response(self.submit((await request.json())["input"]).public())

    async def _status(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._find(request).public())

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        job = self._find(request)
        self.stop(job)
        return web.json_response(job.public())
