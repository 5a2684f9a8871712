"""The line of jobs that load their sources."""

import asyncio
from collections.abc import Callable

import pytest
from support.fakes import REQUEST, settle
from support.replicas import CALLER

from retouch.errors import SourceStatusError
from retouch.jobs.live import Caller, LoadingLine
from retouch.schema import EditRequest, EditResult, Progress


class Edits:
    """Edits that begin to load and then wait; `loaded` and `fail` move one on."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.progress: dict[str, Callable[[Progress], None]] = {}
        self.ends: dict[str, asyncio.Future[EditResult]] = {}

    async def run(
        self,
        request: EditRequest,
        job_id: str,
        caller: Caller,
        progress: Callable[[Progress], None],
    ) -> EditResult:
        self.begun.append(job_id)
        self.progress[job_id] = progress
        progress(Progress(stage="source"))
        self.ends[job_id] = asyncio.get_running_loop().create_future()
        return await self.ends[job_id]


async def begin(edits: Edits, *names: str) -> dict[str, asyncio.Task[EditResult]]:
    line = LoadingLine(edits.run, max_loading=1)
    tasks = {
        name: asyncio.create_task(line.run(REQUEST, name, CALLER, lambda _: None)) for name in names
    }
    await settle()
    return tasks


async def end(tasks: dict[str, asyncio.Task[EditResult]]) -> None:
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def test_a_job_loads_its_sources_once_another_has_loaded_its_own() -> None:
    edits = Edits()
    tasks = await begin(edits, "a", "b", "c")
    assert edits.begun == ["a"]
    edits.progress["a"](Progress(stage="queue"))
    edits.progress["a"](Progress(stage="queue"))  # the turn of one is over once
    await settle()
    assert edits.begun == ["a", "b"]
    await end(tasks)


async def test_a_job_that_fails_while_it_loads_ends_its_turn() -> None:
    edits = Edits()
    tasks = await begin(edits, "a", "b")
    edits.ends["a"].set_exception(SourceStatusError("gone"))
    with pytest.raises(SourceStatusError):
        await tasks["a"]
    await settle()
    assert edits.begun == ["a", "b"]
    await end(tasks)


async def test_a_job_cancelled_in_the_line_leaves_it_to_the_next() -> None:
    edits = Edits()
    tasks = await begin(edits, "a", "b", "c")
    tasks["b"].cancel()
    tasks["a"].cancel()
    await settle()
    assert edits.begun == ["a", "c"]
    await end(tasks)
