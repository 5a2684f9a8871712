"""One request on its way through the steps."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from retouch.editing.masking import Masking
from retouch.editing.previews import Previews
from retouch.editing.result import Finished
from retouch.schema import EditRequest, Progress


def ignore(_: Progress) -> None:
    """Ignore progress."""


class EditOptions(TypedDict, total=False):
    """Options of an edit, by the names of the arguments of `Editor.run`."""

    progress: Callable[[Progress], None]
    previews: Previews | None
    found: Sequence[Finished | None]


@dataclass(frozen=True, slots=True)
class Job:
    """A request with its ids, its times on the editor's clock, its callbacks and its mask.

    `found` has the results that an earlier attempt stored, and None in place of each other one.
    """

    request: EditRequest
    id: str
    request_id: str
    began_s: float
    deadline_s: float
    progress: Callable[[Progress], None] = ignore
    previews: Previews | None = None
    masking: Masking | None = None
    found: Sequence[Finished | None] = ()


def report_steps(job: Job, *, turn: int, turns: int) -> Callable[[int, int], None]:
    """Return a function that reports steps done, and steps, of the `turn`-th of `turns` results.

    Make it in the event loop; it may be called in any thread, more than once for a step.
    """
    loop = asyncio.get_running_loop()
    told = -1

    def report(done: int, steps: int) -> None:
        nonlocal told
        if done == told:
            return
        told = done
        step, all_steps = turn * steps + done, turns * steps
        stage: Literal["denoise", "vae_decode"] = "denoise" if step < all_steps else "vae_decode"
        progress = Progress(stage=stage, step=step, steps=all_steps)
        loop.call_soon_threadsafe(job.progress, progress)

    return report
