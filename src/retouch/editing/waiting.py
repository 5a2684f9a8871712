"""Run calls in threads, and wait for them within limits."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextvars import copy_context
from typing import TypeVar

from retouch import tracing
from retouch.editing.ports import Engine, EngineOutput, PreparedEdit
from retouch.errors import StoreUnavailable

T = TypeVar("T")


def run_in(threads: Executor, function: Callable[[], T], *, span: str = "") -> asyncio.Future[T]:
    """Run `function` in one of `threads`, with the caller's context for the log, as the step `span` of its trace."""
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(threads, copy_context().run, tracing.traced(span, function))


def run_model(
    engine: Engine, prepared: PreparedEdit, on_step: Callable[[int, int], None]
) -> EngineOutput:
    """Edit, and add the phases that the engine measured to the trace."""
    began_ns = tracing.now_ns()
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
