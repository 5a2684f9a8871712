"""Every answer of the worker, as a file."""

import json
from pathlib import Path

from support.fakes import URL, House
from support.snapshots import require_snapshot
from support.worker import build_worker

from retouch.errors import error_classes

SNAPSHOT = Path(__file__).parent / "snapshots" / "answers.json"
INPUT = {"image_url": URL, "prompt": "make colors warmer", "seed": 7}


async def test_the_answers_of_the_worker_are_as_they_were() -> None:
    """One job with success and one with each error, each on a worker of its own."""
    answers = {"success": await build_worker(House()).handle({"id": "job-1", "input": INPUT})}
    for cls in error_classes():
        house = House()
        house.engine.fault = cls("what went wrong", key="for the log only")
        answers[cls.code] = await build_worker(house).handle({"id": "job-1", "input": INPUT})
    require_snapshot(SNAPSHOT, json.dumps(answers, indent=2))
