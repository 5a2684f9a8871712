"""Intermediate results of a running edit, as files."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

from retouch.editing.ports import EngineOutput, PreparedEdit


@dataclass(frozen=True, slots=True)
class Previews:
    """Up to `count` intermediate results of an edit; `show` gets each as a file, in the event loop."""

    count: int
    show: Callable[[bytes], None]


def with_previews(
    prepared: PreparedEdit,
    previews: Previews,
    *,
    encode: Callable[[EngineOutput], bytes],
    threads: Executor,
) -> tuple[PreparedEdit, list[Future[None]]]:
    """Return the edit with previews, and the work of encoding them in `threads`, beside the model."""
    loop = asyncio.get_running_loop()
    work: list[Future[None]] = []

    def encode_and_show(output: EngineOutput) -> None:
        loop.call_soon_threadsafe(previews.show, encode(output))

    def on_preview(output: EngineOutput) -> None:
        work.append(threads.submit(encode_and_show, output))

    return replace(prepared, previews=previews.count, on_preview=on_preview), work
