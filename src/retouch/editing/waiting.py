"""Run the model, and wait for calls in threads within limits."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from retouch import tracing
from retouch.editing.ports import Engine, EngineOutput, PreparedEdit
from retouch.errors import StoreUnavailable

T = TypeVar("T")


def run_model(
    engine: Engine, prepared: PreparedEdit, on_step: Callable[[int, int], None]
) -> EngineOutput:
    """Edit, and add the phases that the engine measured to the trace."""
    began_ns = time.time_ns()
    output = engine.edit(prepared, on_step=on_step)
    phases_ms = {"condition": output.condition_ms, "denoise": output.denoise_ms}
    tracing.add_phases(began_ns, phases_ms | {"vae_decode": output.vae_decode_ms})
    return output


async def within(timeout_s: float, call: Awaitable[T]) -> T:
    """Wait for a call of the store, a quarter longer than its own limit.

    That limit does not end a server that sends byte by byte. The thread goes on until it does.

    Raises:
        StoreUnavailable: the call has not ended.
    """
    try:
        async with asyncio.timeout(1.25 * timeout_s):
            return await call
    except TimeoutError as error:
        raise StoreUnavailable("the object store did not answer in time") from error


async def settle(
    running: asyncio.Future[T], *, timeout_s: float, stop: threading.Event
) -> asyncio.CancelledError | None:
    """Wait until `running` has ended, at most `timeout_s`, however often the task is cancelled.

    A cancellation sets `stop` and is returned, for the caller to raise.
    """
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + timeout_s
    cancelled = None
    while not running.done() and (left_s := give_up_s - loop.time()) > 0:
        try:
            await asyncio.wait([running], timeout=left_s)
        except asyncio.CancelledError as error:
            stop.set()
            cancelled = error
    return cancelled
