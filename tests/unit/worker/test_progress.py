import asyncio
import logging

import pytest
from support.fakes import settle

from retouch.schema import Progress
from retouch.worker.progress import Message, Reporter, describe


class Line:
    """Where messages go: each takes until `is_open`, then fails with `fault` or arrives."""

    def __init__(self) -> None:
        self.begun: list[Message] = []
        self.arrived: list[Message] = []
        self.fault: Exception | None = None
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def send(self, message: Message) -> None:
        self.begun.append(message)
        await self.is_open.wait()
        if self.fault is not None:
            raise self.fault
        self.arrived.append(message)


def steps(messages: list[Message]) -> list[str | int]:
    return [message["step"] for message in messages]


def denoise(step: int) -> Progress:
    return Progress(stage="denoise", step=step, steps=10)


@pytest.mark.parametrize(
    ("progress", "percent"),
    [
        (Progress(stage="source"), 0),
        (Progress(stage="queue"), 5),
        (Progress(stage="condition", steps=10), 5),
        (Progress(stage="denoise", step=0, steps=10), 5),
        (Progress(stage="denoise", step=9, steps=10), 86),
        (Progress(stage="denoise"), 5),
        (Progress(stage="vae_decode", step=10, steps=10), 95),
        (Progress(stage="store"), 98),
    ],
)
def test_a_percentage_grows_with_stages_and_steps(progress: Progress, percent: int) -> None:
    assert describe(progress) == {**progress.model_dump(), "percent": percent}


async def test_what_comes_between_two_messages_is_dropped() -> None:
    line = Line()
    reporter = Reporter(line.send, every_s=0)
    async with reporter.running():
        line.is_open.clear()
        for step in range(5):
            reporter.report(denoise(step))
            await settle()
        line.is_open.set()
        await settle()
    assert steps(line.arrived) == [0, 4]


async def test_messages_keep_their_distance() -> None:
    line = Line()
    reporter = Reporter(line.send, every_s=60)
    async with reporter.running():
        for step in range(5):
            reporter.report(denoise(step))
            await settle()
    assert steps(line.begun) == [0]


async def test_a_message_under_way_is_waited_for() -> None:
    line = Line()
    reporter = Reporter(line.send, every_s=0)
    line.is_open.clear()

    async def report() -> None:
        async with reporter.running():
            reporter.report(denoise(1))
            await settle()

    reporting = asyncio.create_task(report())
    await settle()
    assert not reporting.done()
    line.is_open.set()
    await reporting
    assert steps(line.arrived) == [1]


async def test_a_message_that_hangs_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    line = Line()
    line.is_open.clear()
    reporter = Reporter(line.send, every_s=0, patience_s=0)
    async with reporter.running():
        reporter.report(denoise(1))
        await settle()
    line.is_open.set()
    await settle()
    assert (steps(line.begun), line.arrived) == ([1], [])
    assert [record.message for record in caplog.records] == ["progress.abandoned"]


async def test_nothing_is_sent_after_the_end() -> None:
    line = Line()
    reporter = Reporter(line.send, every_s=0)
    async with reporter.running():
        pass
    reporter.report(denoise(1))
    await settle()
    assert line.begun == []


async def test_a_message_that_fails_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    line = Line()
    line.fault = ConnectionResetError()
    reporter = Reporter(line.send, every_s=0)
    async with reporter.running():
        reporter.report(denoise(1))
        await settle()
        line.fault = None
        reporter.report(denoise(2))
        await settle()
    assert steps(line.arrived) == [2]
    assert [record.message for record in caplog.records] == ["progress.not_sent"]


async def test_a_cancellation_passes_through_and_ends_the_sending() -> None:
    line = Line()
    reporter = Reporter(line.send, every_s=0)

    async def report() -> None:
        async with reporter.running():
            await asyncio.Event().wait()

    reporting = asyncio.create_task(report())
    await settle()
    reporting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reporting
    reporter.report(denoise(1))
    await settle()
    assert line.begun == []
