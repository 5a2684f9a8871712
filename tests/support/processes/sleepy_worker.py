"""A worker with the SDK's real loop, and a model that sleeps: run as a process, `--help` says how.

It edits in 20 steps of 50 ms and notes when each began, so that a test sees when the model is free.
A prompt `fail <code>` fails with that error, `crash` with an unexpected one, and `lose the gpu`
in such a way that the GPU is gone.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from retouch import logs
from retouch.editing.ports import EditParams, EngineOutput, GenerationDefaults, PreparedEdit
from retouch.editing.steps import EditorSettings
from retouch.errors import (
    EditError,
    ModelError,
    error_classes,
)
from retouch.worker import handler, sdk
from retouch.worker.progress import Reporter
from support.fakes import FakeEngine, House
from support.worker import build_host

STEPS = 20
SECRET = "planted-secret-8c21f4"  # noqa: S105 - planted


def build_error(code: str) -> EditError:
    """Build the error of this code."""
    cls = next(cls for cls in error_classes() if cls.code == code)
    return cls("it went wrong", key=SECRET)


class SleepyEngine(FakeEngine):
    """Sleeps through its steps and notes them in a file: what, the edit's seed, the time."""

    def __init__(self, notes: Path, step_s: float) -> None:
        super().__init__(GenerationDefaults(steps=STEPS, guidance_scale=4.0, area_px=64 * 64))
        self._notes = notes.open("a", buffering=1)
        self._step_s = step_s
        self.is_lost = False

    def edit(self, prepared: PreparedEdit, *, on_step: Callable[[int, int], None]) -> EngineOutput:
        work = prepared.params
        if work.prompt.startswith("fail "):
            raise build_error(work.prompt.removeprefix("fail "))
        if work.prompt == "lose the gpu":
            self.is_lost = True
            raise ModelError("the model failed on this edit")
        if work.prompt == "crash":
            raise RuntimeError(f"{__file__}: {SECRET} https://a.example/?token={SECRET}")
        self._note("begin", work)

        def step(number: int, steps: int) -> None:
            on_step(number, steps)
            self._note("step", work)
            time.sleep(self._step_s)

        try:
            return super().edit(prepared, on_step=step)
        finally:
            self._note("end", work)

    def _note(self, what: str, work: EditParams) -> None:
        self._notes.write(f"{what} {work.seed} {time.monotonic()}\n")


def main() -> None:
    """Start the worker as `retouch.worker.main` does, over fakes."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=False)
    parser.add_argument("--notes", type=Path, required=True, help="file for the model's steps")
    parser.add_argument("--step-s", type=float, default=0.05, help="seconds of a step")
    parser.add_argument("--every-s", type=float, default=1.0, help="seconds between progress")
    parser.add_argument("--jobs", type=int, default=1, help="jobs taken at a time")
    parser.add_argument("--grace-s", type=float, default=25, help="seconds for edits after SIGTERM")
    options, _ = parser.parse_known_args()
    from runpod import serverless

    sdk.redirect_log()
    logs.install("DEBUG", secrets=[SECRET])
    engine = SleepyEngine(options.notes, options.step_s)
    house = House(
        engine=engine,
        clock=time.monotonic,  # type: ignore[arg-type]  # real time
        settings=EditorSettings(prefix="p/"),
    )
    config: dict[str, Any] = {"concurrency_modifier": lambda _: options.jobs}
    send = sdk.discard_progress if sdk.IS_LOCAL_TEST else sdk.send_progress
    host = build_host(house, stop_grace_seconds=options.grace_s)
    sdk.close_on_stop(host.close)
    worker = handler.Worker(
        host,
        refresh=partial(sdk.request_refresh, config),
        is_gpu_lost=lambda: engine.is_lost,
        build_reporter=lambda job: Reporter(partial(send, job), every_s=options.every_s),
    )
    config["handler"] = worker.handle
    serverless.start(config)
    asyncio.run(house.editor.close())


if __name__ == "__main__":
    main()
