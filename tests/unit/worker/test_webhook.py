"""Jobs of Runpod that name a webhook."""

import json
from functools import partial
from typing import Any

from support.fakes import URL, FakeStore, House
from support.replicas import HOOK, FakeReceiver, Replica
from support.worker import build_host, build_worker

from retouch.errors import OutOfMemory
from retouch.jobs.jobs import Jobs
from retouch.jobs.live import Run
from retouch.lifecycle import ModelHost
from retouch.worker import sdk
from retouch.worker.handler import Worker
from retouch.worker.progress import Reporter

JOB = {"id": "run-1-u1", "input": {"image_url": URL, "prompt": "warmer", "webhook": HOOK}}


def build(house: House, receiver: FakeReceiver) -> Worker:
    def build_jobs(_: ModelHost, run: Run) -> Jobs:
        return Replica(house.store, receiver=receiver, webhook_scale=0.002, run=run).jobs

    return Worker(
        build_host(house),
        refresh=lambda: None,
        build_reporter=lambda job: Reporter(partial(sdk.discard_progress, job)),
        build_jobs=build_jobs,
    )


async def test_a_job_with_a_webhook_is_answered_once_the_webhook_is_taken() -> None:
    house, receiver = House(store=FakeStore()), FakeReceiver(statuses=[500])
    answer = await build(house, receiver).handle(JOB)
    assert [message["type"] for message in receiver.taken] == ["job.completed"] * 2
    told = receiver.taken[0]["data"]
    assert told["request_id"] == "run-1-u1"
    assert told["answer"]["result"]["object_key"] == answer["result"]["object_key"]
    assert answer["result"]["object_key"].endswith("/run-1-u1.png")


async def test_a_job_that_runs_again_edits_and_sends_nothing_again() -> None:
    house, receiver = House(store=FakeStore()), FakeReceiver()
    answers: list[dict[str, Any]] = [await build(house, receiver).handle(JOB) for _ in range(2)]
    keys = {answer["result"]["object_key"] for answer in answers}
    assert (len(keys), len(house.engine.edits), len(receiver.taken)) == (1, 1, 1)


async def test_a_failed_job_sends_its_error() -> None:
    house, receiver = House(store=FakeStore()), FakeReceiver()
    house.engine.fault = OutOfMemory("too large")
    answer = await build(house, receiver).handle(JOB)
    assert answer["details"]["code"] == "out_of_memory"
    assert receiver.taken[0]["type"] == "job.failed"
    assert receiver.taken[0]["data"]["answer"] == json.loads(answer["error"])


async def test_without_a_secret_a_webhook_is_refused() -> None:
    answer = await build_worker(House()).handle(JOB)
    assert answer["details"]["fields"].keys() == {"webhook"}
