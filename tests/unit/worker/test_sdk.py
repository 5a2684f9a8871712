"""What the SDK's loop does when the worker is stopped, with `sdk.close_on_stop` and without it."""

import asyncio
from typing import Any

import pytest
from runpod.serverless.modules import rp_scale

from retouch.worker import sdk


class Loop:
    """The SDK's loop with polls that the platform holds for a minute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.closed = 0
        monkeypatch.setattr(rp_scale, "JobScaler", rp_scale.JobScaler)
        monkeypatch.setattr(rp_scale, "get_job", self._poll)
        monkeypatch.setattr(rp_scale, "get_stop_signals", self._poll)

    async def close(self) -> None:
        self.closed += 1

    async def stop(self) -> "asyncio.Task[Any]":
        """Start the loop, stop it as a signal does, and give it a moment to end."""
        scaler = rp_scale.JobScaler({"handler": None})
        running = asyncio.create_task(scaler.run())
        await asyncio.sleep(0.05)
        scaler.kill_worker()
        scaler.kill_worker()
        await asyncio.wait([running], timeout=0.5)
        return running

    @staticmethod
    async def _poll(*_: object) -> None:
        await asyncio.sleep(60)


async def test_a_worker_that_is_stopped_closes_once_and_ends_its_polls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop(monkeypatch)
    sdk.close_on_stop(loop.close)
    running = await loop.stop()
    assert running.done()
    assert running.exception() is None
    assert loop.closed == 1


async def test_the_sdk_itself_waits_for_its_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    running = await Loop(monkeypatch).stop()
    assert not running.done(), "close_on_stop need not end them any more"
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_poll_that_breaks_ends_the_loop_with_its_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop(monkeypatch)
    sdk.close_on_stop(loop.close)

    async def fail(_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(rp_scale.JobScaler, "set_scale", fail)
    with pytest.raises(RuntimeError, match="broken"):
        await rp_scale.JobScaler({"handler": None}).run()
