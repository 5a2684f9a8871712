"""What the worker must hold with the demo model, on the SDK's real loop and a real bucket."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retouch.schema import EditResult
from support.processes.worker_process import WorkerProcess
from support.servers.bentoml_service import SAMPLE_URL
from support.servers.ceph_rgw import Rgw
from support.servers.runpod_api import Job, Platform

LONG = {"image_url": SAMPLE_URL, "prompt": "make colors warmer", "num_inference_steps": 20}
SHORT = LONG | {"num_inference_steps": 1}
_PLATFORM_S = 1.0
"""What the SDK and the platform may take to hand over the next job."""


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    with TemporaryDirectory() as name, Rgw(Path(name)) as gateway:
        yield {**gateway.settings(), "MODEL_ID": "", "OMP_NUM_THREADS": "2"}


@contextmanager
def worker(settings: dict[str, str]) -> Iterator[tuple[Platform, WorkerProcess]]:
    with TemporaryDirectory() as name, Platform(hold_s=20) as platform:
        command = ["-m", "retouch.worker"]
        with WorkerProcess(Path(name), command, platform.environment | settings) as process:
            yield platform, process


def require_meta(job: Job) -> dict[str, Any]:
    """Require one result, of the demo model, after all progress; return its `meta`."""
    assert job.state == "COMPLETED", job
    assert len(job.results) == 1
    assert "status" not in job.messages[-1]
    meta = EditResult.model_validate(job.output).result.meta.model_dump()
    assert "demo" in meta["model"], meta
    return meta


def run_with_demo(tries: int) -> str:
    """Run edits, stops and ends in mid-job, `tries` of each; say how long a stop took."""
    free_s: list[float] = []
    with bucket() as settings:
        with worker(settings) as (platform, _):
            platform.wait(platform.submit(SHORT))
            for _ in range(tries):
                long = platform.wait(platform.submit(LONG))
                step_s = require_meta(long)["timings_ms"]["denoise"] / 20 / 1000
                assert long.progress
            for _ in range(tries):
                stopped, following = platform.submit(LONG), platform.submit(SHORT)
                platform.wait_for(lambda: any(m["step"] > 0 for m in stopped.progress))  # noqa: B023
                platform.stop(stopped)
                meta = require_meta(platform.wait(following))
                took_s = following.done_at_s - platform.stopped_at_s[stopped.id]
                free_s.append(took_s - meta["timings_ms"]["total"] / 1000)
                assert stopped.results == []
        assert max(free_s) < step_s + _PLATFORM_S, (free_s, step_s)
        for _ in range(tries):
            with worker(settings) as (platform, process):
                job = platform.submit(LONG)
                platform.wait_for(lambda: any(m["step"] > 0 for m in job.progress))  # noqa: B023
                process.terminate()
                assert process.wait() == 0
                require_meta(job)
    return (
        f"next job begun {1000 * max(free_s):.0f} ms after a stop at most, of {1000 * step_s:.0f} ms "
        f"steps; each result once and last; each ended worker delivered"
    )
