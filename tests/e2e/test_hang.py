"""A model that never returns: callers get answers, the process ends, and the next one edits."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.processes.hanging import write_sitecustomize
from support.processes.worker_process import WorkerProcess
from support.servers.bentoml_service import SAMPLE_URL, require_error, serving
from support.servers.ceph_rgw import Rgw
from support.servers.runpod_api import Platform

from retouch.lifecycle import EXIT_STATUS
from retouch.schema import ErrorBody

pytestmark = pytest.mark.e2e

DEADLINE_S, GRACE_S = 3.0, 1.0
LIMITS = {"JOB_TIMEOUT_SECONDS": str(DEADLINE_S), "EDIT_GRACE_SECONDS": str(GRACE_S)}
HANG = {"image_url": SAMPLE_URL, "prompt": "hang"}
EDIT = {"image_url": SAMPLE_URL, "prompt": "make colors warmer"}


def test_the_service_answers_everyone_ends_and_its_successor_edits(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    settings = {"PYTHONPATH": write_sitecustomize(hook), **LIMITS}
    with serving(tmp_path, settings) as service, ThreadPoolExecutor(2) as callers:
        began_s = time.monotonic()
        hung = callers.submit(service.ask, prompt="hang")
        time.sleep(DEADLINE_S - 0.5)  # so that its own deadline is after the grace
        waiting = callers.submit(service.ask)
        while service.client.get("/livez").status_code == 200:
            assert time.monotonic() < began_s + DEADLINE_S + GRACE_S + 5
            time.sleep(0.05)
        require_error(service.client.get("/livez"), 500, "ModelError", "model_failed")
        error = require_error(service.client.get("/readyz"), 503, "NotReady", "model_lost")
        assert error["details"]["retryable"]
        require_error(service.ask(), 503, "NotReady", "model_lost")
        require_error(hung.result(), 504, "DeadlineExceeded", "deadline_exceeded")
        require_error(waiting.result(), 503, "NotReady", "model_lost")
        assert service.events("engine.lost", exit_status=EXIT_STATUS)
        service.wait_for(lambda: len(service.events("engine.ready")) == 2)
        service.wait_until_ready()
        assert service.ask().status_code == 200


def test_the_worker_fails_its_job_ends_and_its_successor_edits(rgw: Rgw, tmp_path: Path) -> None:
    settings = {**rgw.settings(), **LIMITS}
    command = ["-m", "support.processes.hanging"]
    with Platform() as platform:
        environment = platform.environment | settings
        with WorkerProcess(tmp_path, command, environment) as worker:
            job = platform.submit(HANG)
            platform.wait_for(lambda: job.taken_at_s)
            platform.wait(job)
            assert job.done_at_s - job.taken_at_s < DEADLINE_S + GRACE_S + 5
            assert job.state == "FAILED"
            body = ErrorBody.model_validate_json(job.error)
            assert body.error.details.code == "deadline_exceeded"
            assert job.results[0]["stopPod"] is True
            assert worker.wait(30) == EXIT_STATUS
        with WorkerProcess(tmp_path, command, environment):
            assert platform.wait(platform.submit(EDIT)).state == "COMPLETED"
