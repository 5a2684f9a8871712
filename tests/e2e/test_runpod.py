"""`python -m retouch.worker` as it is, with the tiny model, a real S3 server and a real origin.

The SDK's loop is the real one; the platform it asks, and its callers ask, is on 127.0.0.1.
"""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.processes.worker_process import ROOT, WorkerProcess
from support.servers.bentoml_service import ALL_DAY, SAMPLE, SAMPLE_URL, LiveOrigin, Service
from support.servers.ceph_rgw import Rgw
from support.servers.origin import answer
from support.servers.runpod_api import API_KEY, ENDPOINT, WORKER_KEY, Job, Platform

from retouch.client import Client
from retouch.errors import Cancelled, InvalidRequest, SourceStatusError
from retouch.schema import EditResult, ErrorBody

pytestmark = pytest.mark.e2e

WORKER = ["-m", "retouch.worker"]
TOKEN = "token-in-a-url-6f0b92"  # noqa: S105 - planted
PROMPT = "make colors warmer, planted-prompt-1c7e"
# Several times the second between two messages of progress.
LONG = {**ALL_DAY, "num_inference_steps": 15}


@dataclass
class Endpoint:
    """A worker, the platform it works for, and the bucket it writes to."""

    platform: Platform
    worker: WorkerProcess
    origin: LiveOrigin
    settings: Mapping[str, str]

    def run(self, **fields: Any) -> Job:
        return self.platform.wait(self.submit(**fields))

    def submit(self, **fields: Any) -> Job:
        return self.platform.submit({"image_url": SAMPLE_URL, "prompt": PROMPT, **fields})

    def client(self) -> Client:
        return Client(ENDPOINT, API_KEY, base_url=self.platform.url)


def s3_settings(rgw: Rgw, origin: LiveOrigin) -> dict[str, str]:
    return {
        "ALLOWED_SOURCE_HOSTS": origin.address,
        **rgw.settings(),
        "S3_OBJECT_PREFIX": "worker/",
        "LOG_LEVEL": "DEBUG",
    }


@pytest.fixture(scope="module")
def endpoint(
    rgw: Rgw, origin: LiveOrigin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    settings = s3_settings(rgw, origin)
    folder = tmp_path_factory.mktemp("worker")
    with (
        Platform(hold_s=20) as platform,
        WorkerProcess(folder, WORKER, platform.environment | settings) as worker,
    ):
        yield Endpoint(platform, worker, origin, settings)


def run_module(folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own interpreter and options
        [sys.executable, *WORKER, *options],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT / "src")}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# --- jobs --------------------------------------------------------------------------------------


def test_a_job_is_answered_with_a_link_that_opens(endpoint: Endpoint) -> None:
    job = endpoint.run(output_format="webp")
    result = EditResult.model_validate(job.output).result
    link = httpx.get(result.presigned_url, trust_env=False)
    assert (link.status_code, link.headers["content-type"]) == (200, "image/webp")
    assert result.object_key.endswith(f"/{job.id}.webp")
    assert result.meta.source.bytes == len(SAMPLE)
    assert len(json.dumps(job.output)) < 4096


def test_a_retried_job_answers_from_the_bucket(endpoint: Endpoint) -> None:
    target = "/retried.jpg"
    job = endpoint.run(image_url=endpoint.origin.offer(target))
    first = EditResult.model_validate(job.output).result
    again = EditResult.model_validate(endpoint.platform.wait(endpoint.platform.retry(job)).output)
    assert again.result.object_key == first.object_key
    assert again.result.meta.notes[-1] == "an earlier attempt at this job had stored this result"
    assert again.result.meta.seed == first.meta.seed
    assert again.result.meta.timings_ms.denoise == 0
    assert httpx.get(again.result.presigned_url, trust_env=False).status_code == 200
    assert endpoint.origin.count(target) == 1


def test_five_stopped_jobs_leave_the_model_free_and_nothing_stored(endpoint: Endpoint) -> None:
    for _ in range(5):
        job = endpoint.submit(**ALL_DAY)
        endpoint.platform.wait_for(lambda: any(m["step"] > 0 for m in job.progress))  # noqa: B023
        endpoint.platform.stop(job)
        began_s = time.monotonic()
        following = endpoint.run(width=64, height=64)
        assert following.state == "COMPLETED"
        assert time.monotonic() - began_s < 30, "the stopped edit would have taken longer"
        assert job.results == []
        queue_ms = following.output["result"]["meta"]["timings_ms"]["queue"]
        assert queue_ms < 1000


def test_jobs_with_progress_end_with_their_result(endpoint: Endpoint) -> None:
    for _ in range(2):
        job = endpoint.run(**LONG)
        assert job.state == "COMPLETED"
        assert "status" not in job.messages[-1]
        assert {message["stage"] for message in job.progress} >= {"denoise"}
        assert [message["percent"] for message in job.progress] == sorted(
            message["percent"] for message in job.progress
        )


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"prompt": ""}, "invalid_request"),
        ({"image_url": "data:,nothing"}, "unsupported_image"),
        ({"image_url": "http://127.0.0.1:9/"}, "invalid_request"),
        ({"image_url": "http://localhost/"}, "source_unreachable"),
    ],
)
def test_a_failed_job_is_failed_with_a_string(
    endpoint: Endpoint, fields: dict[str, str], code: str
) -> None:
    job = endpoint.run(**fields)
    assert job.state == "FAILED"
    assert ErrorBody.model_validate_json(job.error).error.details.code == code


def test_both_entry_points_give_the_same_image_and_the_same_error(
    endpoint: Endpoint, s3: Service
) -> None:
    fields = {"seed": 7, "width": 96, "height": 64, "output_format": "png"}
    by_http = s3.edit(prompt=PROMPT, **fields)
    by_job = endpoint.run(**fields).output["result"]
    bodies = [
        httpx.get(result["presigned_url"], trust_env=False).content for result in (by_http, by_job)
    ]
    assert bodies[0] == bodies[1]
    own = ("job_id", "request_id", "timings_ms", "source")
    for meta in (by_http["meta"], by_job["meta"]):
        for name in own:
            del meta[name]
    assert by_http["meta"] == by_job["meta"]
    errors = [
        s3.ask(prompt=PROMPT, seed="one", more=1).json()["error"],
        json.loads(endpoint.run(seed="one", more=1).error)["error"],
    ]
    for error in errors:
        del error["details"]["request_id"]
    assert errors[0] == errors[1]


# --- the client --------------------------------------------------------------------------------


def test_the_client_edits_and_hears_of_progress(endpoint: Endpoint) -> None:
    heard: list[Mapping[str, Any]] = []
    with endpoint.client() as client:
        job_id = client.submit({"image_url": SAMPLE_URL, "prompt": PROMPT, **LONG})
        result = client.wait(job_id, every_s=0.2, progress=heard.append).result
    assert result.meta.job_id == job_id
    assert "denoise" in [message["stage"] for message in heard]


def test_the_client_raises_what_the_job_failed_with(endpoint: Endpoint) -> None:
    missing = endpoint.origin.offer("/missing.jpg", answer(b"", status=404))
    with endpoint.client() as client:
        with pytest.raises(InvalidRequest) as wrong:
            client.edit({"image_url": SAMPLE_URL, "prompt": PROMPT, "seed": "one"})
        assert set(wrong.value.details["fields"]) == {"seed"}
        with pytest.raises(SourceStatusError) as refused:
            client.edit({"image_url": missing, "prompt": PROMPT})
        assert refused.value.details["origin_status"] == 404


def test_the_client_cancels(endpoint: Endpoint) -> None:
    with endpoint.client() as client:
        job_id = client.submit({"image_url": SAMPLE_URL, "prompt": PROMPT, **ALL_DAY})
        endpoint.platform.wait_for(lambda: client.status(job_id).progress)
        client.cancel(job_id)
        with pytest.raises(Cancelled):
            client.wait(job_id)


# --- the process -------------------------------------------------------------------------------


def test_every_line_is_json_without_secrets_tokens_or_prompts(endpoint: Endpoint) -> None:
    url = endpoint.origin.offer(f"/picture.jpg?token={TOKEN}")
    job = endpoint.run(image_url=url, output_format="png")
    endpoint.run(image_url=url, output_format="gif")
    endpoint.run(image_url=f"https://user:{TOKEN}@127.0.0.1/")
    endpoint.platform.wait_for(lambda: f'"requestId": "{job.id}"' in endpoint.worker.output)
    lines = endpoint.worker.lines
    assert {"time", "level", "logger", "message", "requestId"} <= set(lines[0])
    assert "Finished." in [line["message"] for line in lines if line["requestId"] == job.id]
    output = endpoint.worker.output
    signature = job.output["result"]["presigned_url"].partition("X-Amz-Signature=")[2][:64]
    planted = (
        TOKEN,
        "planted-prompt",
        WORKER_KEY,
        endpoint.settings["S3_SECRET_KEY"],
        endpoint.settings["S3_ACCESS_KEY"],
        signature,
        "X-Amz-",
        "base64,",
        "gpu=none",
    )
    assert [word for word in planted if word in output] == []


def test_workers_that_get_sigterm_deliver_their_jobs(
    rgw: Rgw, origin: LiveOrigin, tmp_path: Path
) -> None:
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        with (
            Platform(hold_s=0.5) as platform,
            WorkerProcess(
                folder, WORKER, platform.environment | s3_settings(rgw, origin)
            ) as worker,
        ):
            job = platform.submit(
                {"image_url": SAMPLE_URL, "prompt": PROMPT, **LONG, "num_inference_steps": 6}
            )
            platform.wait_for(lambda: any(m["step"] > 0 for m in job.progress))  # noqa: B023
            worker.terminate()
            assert worker.wait() == 0
            assert job.state == "COMPLETED"


def test_a_worker_that_gets_sigterm_while_it_loads_ends_at_once(
    rgw: Rgw, origin: LiveOrigin, tmp_path: Path
) -> None:
    """By a handler: without one the kernel keeps the signal from a container's first process."""
    with socket.socket() as closed, Platform() as platform:
        closed.bind(("127.0.0.1", 0))
        away = {"ENGINE_URL": f"http://127.0.0.1:{closed.getsockname()[1]}"}
        settings = platform.environment | s3_settings(rgw, origin) | away
        with WorkerProcess(tmp_path, WORKER, settings) as worker:
            platform.wait_for(lambda: "waiting for the engine" in worker.output)
            worker.terminate()
            assert worker.wait() == 128 + signal.SIGTERM
            assert platform.batches == []


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"S3_BUCKET": ""}, "S3_BUCKET missing"),
        ({"S3_BUCKET": "nowhere"}, "check S3_BUCKET"),
        ({"S3_SECRET_KEY": "wrong-key"}, "check S3_SECRET_KEY"),
        ({"MODEL_ID": "org/name"}, "there is no GPU"),
    ],
)
def test_a_worker_that_cannot_work_reports_the_reason_to_the_platform(
    rgw: Rgw, origin: LiveOrigin, tmp_path: Path, environment: dict[str, str], says: str
) -> None:
    with Platform() as platform:
        settings = platform.environment | s3_settings(rgw, origin) | environment
        with WorkerProcess(tmp_path, WORKER, settings) as worker:
            assert worker.wait() == 1
            reports = [ping for ping in platform.pings if ping.get("status") == "unhealthy"]
            assert len(reports) == 1
            assert says in reports[0]["reason"]
            assert "wrong-key" not in worker.output
            assert platform.batches == []


def test_off_the_platform_a_worker_without_s3_says_so_in_one_line(tmp_path: Path) -> None:
    done = run_module(tmp_path, "--test_input", "{}")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "the worker cannot start: a Runpod worker keeps its results in S3"
    )
    assert done.stderr.count("\n") == 1


def test_help_lists_the_options(tmp_path: Path) -> None:
    done = run_module(tmp_path, "--help")
    assert done.returncode == 0
    assert "--rp_serve_api" in done.stdout


def test_the_test_input_of_the_repository_is_edited(
    rgw: Rgw, origin: LiveOrigin, tmp_path: Path
) -> None:
    (tmp_path / "test_input.json").write_text((ROOT / "tests/e2e/test_input.json").read_text())
    done = run_module(tmp_path, **s3_settings(rgw, origin))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Job local_test completed successfully." in done.stdout
    assert "X-Amz-Signature" not in done.stdout


def test_a_worker_is_imported_in_less_than_three_seconds(tmp_path: Path) -> None:
    """Of processor time, as other tests may have the machine."""
    script = (
        "import retouch.worker, sys, time;"
        "print(time.process_time(), [name for name in ('torch', 'bentoml') if name in sys.modules])"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter and options
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    took_s, _, heavy = done.stdout.partition(" ")
    assert float(took_s) < 3
    assert heavy.strip() == "[]"
