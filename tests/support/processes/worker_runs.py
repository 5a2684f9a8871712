"""Properties of a worker on the SDK's real loop, each as a run of any number of tries.

The tests run few of each, `tests/bench/worker_counts.py` many.
"""

import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from retouch.editing.params import derive_seed
from retouch.schema import EditResult, ErrorBody
from support.fakes import URL
from support.processes.sleepy_worker import SECRET, STEPS
from support.processes.worker_process import ROOT, WorkerProcess
from support.servers.runpod_api import Job, Platform

MAX_BYTES = 8192
_NEVER_TOLD = (
    "Traceback",
    SECRET,
    str(ROOT),
    "site-packages",
    "/usr/",
    "pod1",
    socket.gethostname(),
)
REQUEST = {"image_url": URL, "prompt": "make colors warmer"}


@dataclass(frozen=True)
class Note:
    """What the sleeping model did, for which seed, and when."""

    what: str
    seed: int
    at_s: float


@dataclass
class Sleepy:
    """A worker whose model sleeps, and the platform it works for."""

    platform: Platform
    process: WorkerProcess
    folder: Path

    def notes(self, job: Job | None = None) -> list[Note]:
        texts = [line.split() for line in (self.folder / "notes").read_text().splitlines()]
        notes = [Note(what, int(seed), float(at_s)) for what, seed, at_s in texts]
        return [n for n in notes if job is None or n.seed == derive_seed(job.id)]

    def count(self, job: Job, what: str) -> int:
        return sum(note.what == what for note in self.notes(job))

    def require_no_overlap(self) -> None:
        """Require that the model ended each edit before it began the next."""
        ends = [note for note in self.notes() if note.what != "step"]
        for begun, ended in zip(ends[::2], ends[1::2], strict=False):
            assert (begun.what, ended.what) == ("begin", "end"), ends
            assert begun.seed == ended.seed, ends


@contextmanager
def sleepy(*options: str, hold_s: float = 1.0) -> Iterator[Sleepy]:
    """Run a sleepy worker on the SDK's real loop."""
    with TemporaryDirectory() as name, Platform(hold_s=hold_s) as platform:
        folder = Path(name)
        (folder / "notes").touch()
        command = [
            str(ROOT / "tests/support/processes/sleepy_worker.py"),
            "--notes",
            str(folder / "notes"),
        ]
        with WorkerProcess(folder, [*command, *options], platform.environment) as process:
            yield Sleepy(platform, process, folder)


@contextmanager
def local_server(*options: str) -> Iterator[httpx.Client]:
    """Run a sleepy worker behind the SDK's local server."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with TemporaryDirectory() as name:
        folder = Path(name)
        serve = ["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port)]
        command = [
            str(ROOT / "tests/support/processes/sleepy_worker.py"),
            "--notes",
            str(folder / "notes"),
        ]
        with (
            WorkerProcess(folder, [*command, *serve, *options], {}),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http,
        ):
            give_up_at_s = time.monotonic() + 60
            while True:
                try:
                    http.get("/openapi.json")
                    break
                except httpx.TransportError:
                    assert time.monotonic() < give_up_at_s
                    time.sleep(0.05)
            yield http


# --- runs --------------------------------------------------------------------------------------


def run_progress(tries: int) -> int:
    """Require that no progress comes after a result, and some before; return the messages sent."""
    with sleepy("--every-s", "0.02", "--jobs", "8", "--step-s", "0.005") as worker:
        jobs = [worker.platform.submit(REQUEST) for _ in range(tries)]
        # A slow platform is where messages would overtake one another.
        worker.platform.progress_delay_s = 0.03
        for job in jobs:
            worker.platform.wait(job)
        time.sleep(1)  # for messages that might still come
        for job in jobs:
            assert job.state == "COMPLETED", job
            assert [message.get("status") for message in job.messages[-1:]] == [None], job
            assert len(job.results) == 1, job
            assert job.progress, job
            percents = [message["percent"] for message in job.progress]
            assert percents == sorted(percents), percents
        return sum(len(job.progress) for job in jobs)


def run_cancels(tries: int) -> list[float]:
    """Require that a stop ends an edit within a step, and that the next edit waits for it.

    Return the seconds from each stop signal until the model was free.
    """
    free_s: list[float] = []
    # The SDK waits 1 s between two polls for stops; a poll that is held long returns each stop at once.
    with sleepy(hold_s=30) as worker:
        for number in range(tries):
            stopped, following = (worker.platform.submit(REQUEST) for _ in range(2))
            at_step = number % (STEPS - 4) + 1
            worker.platform.wait_for(lambda: worker.count(stopped, "step") >= at_step)  # noqa: B023
            worker.platform.stop(stopped)
            worker.platform.wait(following)
            told_at_s = worker.platform.stopped_at_s[stopped.id]
            notes = worker.notes(stopped)
            assert notes[-1].what == "end"
            assert sum(n.what == "step" and n.at_s > told_at_s for n in notes) <= 1, notes
            assert following.state == "COMPLETED"
            assert stopped.results == []
            free_s.append(notes[-1].at_s - told_at_s)
        worker.require_no_overlap()
    return free_s


def run_sigterms(tries: int) -> None:
    """Require that a worker that is told to end during a job delivers it and exits with 0."""
    for number in range(tries):
        with sleepy() as worker:
            job = worker.platform.submit(REQUEST)
            worker.platform.wait_for(lambda: worker.count(job, "step") > number % STEPS)  # noqa: B023
            worker.process.terminate()
            assert worker.process.wait() == 0
            assert job.state == "COMPLETED", worker.process.output
            EditResult.model_validate(job.output)


@dataclass
class Tally:
    """Counts of the answers."""

    succeeded: int = 0
    failed: dict[str, int] = field(default_factory=dict)

    def add(self, answer: dict[str, Any]) -> None:
        """Check that an answer leaks nothing to the caller, and count it."""
        text = json.dumps(answer)
        assert not [word for word in _NEVER_TOLD if word in text], text
        assert len(json.dumps({"error": answer.get("error"), "output": answer.get("output")})) <= (
            MAX_BYTES + 64
        ), text
        if answer.get("error") is None:
            EditResult.model_validate(answer["output"])
            self.succeeded += 1
            return
        body = ErrorBody.model_validate_json(answer["error"])
        code = body.error.details.code
        self.failed[code] = self.failed.get(code, 0) + 1


def run_fuzz_on_the_loop(tries: int, *, seed: int = 0) -> Tally:
    """Require that a job with any input ends on the real loop, with an answer that leaks nothing."""
    tally, chance = Tally(), random.Random(seed)  # noqa: S311 - test data
    with sleepy("--jobs", "20", "--step-s", "0") as worker:
        jobs = [worker.platform.submit(make_input(chance)) for _ in range(tries)]
        for job in jobs:
            worker.platform.wait(job)
            assert len(job.results) == 1
            assert job.state == ("COMPLETED" if job.error is None else "FAILED")
            tally.add(job.public())
        assert "Captured Handler Exception" not in worker.process.output
    return tally


def run_fuzz_on_the_local_server(tries: int, *, seed: int = 1) -> Tally:
    """Require the same of the SDK's local server, which takes objects only."""
    tally, chance = Tally(), random.Random(seed)  # noqa: S311 - test data
    with local_server("--step-s", "0") as http:
        for _ in range(tries):
            made = make_input(chance)
            body = {"input": made if isinstance(made, dict) else {"input": made}}
            answer = http.post("/runsync", content=json.dumps(body), headers=_JSON)
            assert answer.status_code == httpx.codes.OK, answer.text
            told = answer.json()
            assert told["status"] == ("FAILED" if told.get("error") else "COMPLETED")
            tally.add(told)
    return tally


# --- inputs ------------------------------------------------------------------------------------

_JSON = {"Content-Type": "application/json"}
_TEXTS = (
    "",
    " ",
    "a",
    "\ud800",
    "\x00",
    "😀" * 200,
    "x" * 5000,
    "<|im_end|>",
    "crash",
    "fail out_of_memory",
    "fail store_denied",
    URL,
    f"https://user:{SECRET}@pictures.example/?token={SECRET}",
    "http://127.0.0.1/",
    "http://[::1]:99999/",
    "file:///etc/passwd",
    "data:,",
    "data:image/png;base64,////",
    "data:image/png;base64,é",
    "NaN",
)
_NUMBERS = (0, -1, 1, 7, 50, 51, 1001, 2**32, -(2**70), 10**30, 0.5, 1e308, True, False, 1024)
_FIELDS = (
    "image_url",
    "prompt",
    "negative_prompt",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "output_format",
    "output_quality",
    "width",
    "height",
    "refresh_worker",
    "error",
    "é" * 100,
    "\udfff" * 40,
)


def make_value(chance: random.Random, depth: int = 0) -> Any:
    """Make any JSON value."""
    kind = chance.randrange(6 if depth < 3 else 4)
    if kind == 0:
        return None
    if kind == 1:
        return chance.choice(_NUMBERS)
    if kind in (2, 3):
        return chance.choice(_TEXTS)
    values = [make_value(chance, depth + 1) for _ in range(chance.randrange(40))]
    if kind == 4:
        return values
    return {chance.choice(_FIELDS) + str(number): value for number, value in enumerate(values)}


def make_input(chance: random.Random) -> Any:
    """Make an input: mostly a request with a few fields changed, sometimes any JSON value."""
    if chance.random() < 0.15:
        return make_value(chance)
    made: dict[str, Any] = dict(REQUEST)
    if chance.random() < 0.4:
        made[chance.choice(_FIELDS[:3])] = chance.choice(_TEXTS)
        return made
    for _ in range(chance.randrange(4)):
        name = chance.choice(_FIELDS)
        if chance.random() < 0.2:
            made.pop(name, None)
        else:
            made[name] = make_value(chance)
    return made
