"""Wire snapshots of the worker: `snapshots/answers.json` holds every answer.

After an intended change, `WRITE_SNAPSHOTS=1 pytest tests/unit/worker/test_snapshots.py` rewrites it.
"""

import json
import os
from pathlib import Path
from typing import Any

from support.fakes import URL, House
from support.worker import build_worker

from retouch.errors import error_classes

SNAPSHOTS = Path(__file__).parent / "snapshots" / "answers.json"
INPUT = {"image_url": URL, "prompt": "make colors warmer", "seed": 7}
CHANGING = {"expires_at": "2026-01-01T00:00:00Z"}
"""What differs between two runs, beside the timings."""


async def make_answers() -> dict[str, Any]:
    """Answer one job with success and one with each error, each on a worker of its own."""
    success = await build_worker(House()).handle({"id": "job-1", "input": INPUT})
    success["result"] |= CHANGING
    timings_ms = success["result"]["meta"]["timings_ms"]
    success["result"]["meta"]["timings_ms"] = dict.fromkeys(timings_ms, 0.0)
    answers = {"success": success}
    for cls in error_classes():
        house = House()
        house.engine.fault = cls("what went wrong", key="for the log only")
        answers[cls.code] = await build_worker(house).handle({"id": "job-1", "input": INPUT})
    return answers


async def test_the_answers_of_the_worker_are_as_they_were() -> None:
    answers = await make_answers()
    if os.environ.get("WRITE_SNAPSHOTS"):
        SNAPSHOTS.write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
    assert answers == json.loads(SNAPSHOTS.read_text(encoding="utf-8"))
