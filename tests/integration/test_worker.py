"""The worker on the SDK's real loop and behind its local server, with a model that sleeps."""

import json
import time

import httpx
import pytest
import runpod
from support.processes import worker_runs
from support.processes.sleepy_worker import SECRET
from support.processes.worker_runs import REQUEST, Tally, local_server, sleepy
from support.servers.runpod_api import Job

from retouch.errors import ModelLost, error_classes
from retouch.schema import EditResult, ErrorBody

pytestmark = pytest.mark.integration

# The last: an engine that says that its model is lost ends the worker.
CODES = sorted((cls.code for cls in error_classes()), key=lambda code: code == ModelLost.code)


def test_no_progress_comes_after_a_result() -> None:
    assert worker_runs.run_progress(16) >= 16


def test_a_stop_ends_an_edit_within_a_step_and_the_next_waits_for_it() -> None:
    assert max(worker_runs.run_cancels(3)) < 1


def test_a_worker_that_gets_sigterm_delivers_its_job() -> None:
    worker_runs.run_sigterms(2)


def test_an_idle_worker_ends_at_once_and_leaves_the_next_job_in_the_queue() -> None:
    with sleepy(hold_s=60) as worker:
        worker.platform.wait(worker.platform.submit(REQUEST))
        worker.platform.wait_for(lambda: worker.platform.is_polled)
        worker.process.terminate()
        assert worker.process.wait(10) == 0
        late = worker.platform.submit(REQUEST)
        time.sleep(0.5)
        assert late.state == "IN_QUEUE"


def test_a_job_that_outlasts_the_grace_fails_and_may_be_retried() -> None:
    with sleepy("--step-s", "0.5", "--grace-s", "1") as worker:
        job = worker.platform.submit(REQUEST)
        worker.platform.wait_for(lambda: worker.count(job, "step"))
        worker.process.terminate()
        assert worker.process.wait(10) == 0
        assert job.state == "FAILED"
        details = ErrorBody.model_validate_json(job.error).error.details
        assert (details.code, details.retryable) == ("not_ready", True)


def test_a_job_that_comes_while_a_worker_ends_stays_in_the_queue() -> None:
    with sleepy("--step-s", "0.15", hold_s=10) as worker:
        first = worker.platform.submit(REQUEST)
        worker.platform.wait_for(lambda: worker.count(first, "step") > 9)
        worker.process.terminate()
        time.sleep(0.1)
        late = worker.platform.submit(REQUEST)
        assert worker.process.wait() == 0
        assert (first.state, late.state) == ("COMPLETED", "IN_QUEUE")


def test_a_retried_job_answers_from_its_result() -> None:
    with sleepy() as worker:
        first = worker.platform.wait(worker.platform.submit(REQUEST))
        key = first.output["result"]["object_key"]
        again = worker.platform.wait(worker.platform.retry(first))
        assert again.output["result"]["object_key"] == key
        assert worker.count(first, "begin") == 1


def test_a_lost_gpu_ends_the_worker_once_its_job_is_answered() -> None:
    with sleepy() as worker:
        failed = worker.platform.wait(
            worker.platform.submit({**REQUEST, "prompt": "fail model_failed"})
        )
        assert failed.state == "FAILED"
        assert "stopPod" not in failed.results[0]
        lost = worker.platform.wait(worker.platform.submit({**REQUEST, "prompt": "lose the gpu"}))
        assert lost.state == "FAILED"
        assert lost.results[0]["stopPod"] is True
        assert worker.process.wait() == 0


def test_every_error_arrives_failed_as_a_string_on_the_loop() -> None:
    with sleepy("--jobs", "20") as worker:

        def submit(prompt: str) -> Job:
            return worker.platform.submit({**REQUEST, "prompt": prompt})

        jobs = {code: submit(f"fail {code}") for code in CODES[:-1]}
        crashed = submit("crash")
        for job in (*jobs.values(), crashed):
            worker.platform.wait(job)
        jobs[CODES[-1]] = submit(f"fail {CODES[-1]}")
        for code, job in (*jobs.items(), ("internal_error", crashed)):
            worker.platform.wait(job)
            assert job.state == "FAILED"
            body = ErrorBody.model_validate_json(job.error)
            assert body.error.details.code == code
            assert job.output == {"status": "error", **json.loads(job.error)["error"]}
            Tally().add(job.public())
        assert SECRET not in worker.process.output
        lines = worker.process.lines
        ids = {line["requestId"] for line in lines if line["message"] == "edit.failed"}
        assert ids == {job.id for job in (*jobs.values(), crashed)}


def test_every_error_arrives_failed_as_a_string_on_the_local_server() -> None:
    with local_server() as http:
        for code in CODES:
            body = {"input": {**REQUEST, "prompt": f"fail {code}"}}
            answer = http.post("/runsync", json=body)
            assert answer.status_code == httpx.codes.OK
            job = answer.json()
            assert job["status"] == "FAILED"
            assert ErrorBody.model_validate_json(job["error"]).error.details.code == code


def test_any_input_is_answered_on_the_loop() -> None:
    tally = worker_runs.run_fuzz_on_the_loop(60)
    assert tally.succeeded
    assert len(tally.failed) > 2


def test_any_input_is_answered_on_the_local_server() -> None:
    tally = worker_runs.run_fuzz_on_the_local_server(100)
    assert tally.succeeded
    assert len(tally.failed) > 2


def test_the_sdks_client_gets_a_result_from_the_local_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with local_server("--step-s", "0") as http:
        monkeypatch.setattr(runpod, "endpoint_url_base", str(http.base_url).rstrip("/"))
        monkeypatch.setattr(runpod, "api_key", "any")
        output = runpod.Endpoint(".").run_sync({"input": REQUEST}, timeout=30)
        assert EditResult.model_validate(output).result.meta.num_inference_steps == 20
