"""Server-sent events of an edit: progress while it runs, then its result or its error."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse

from retouch.errors import EditError
from retouch.schema import EditResult

KEEP_ALIVE_S = 15.0
KEEP_ALIVE = ": still working\n\n"


def is_wanted(request: Request) -> bool:
    """Whether the caller asks for a stream."""
    return any("text/event-stream" in one.lower() for one in request.headers.getlist("accept"))


def format_event(name: str, body: BaseModel | Mapping[str, Any]) -> str:
    """Format one server-sent event."""
    text = body.model_dump_json() if isinstance(body, BaseModel) else json.dumps(body)
    return f"event: {name}\ndata: {text}\n\n"


def respond(events: AsyncIterator[str], headers: Mapping[str, str]) -> StreamingResponse:
    """Return the response that streams `events`, with these headers beside its own."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def stream(
    edit: asyncio.Task[EditResult],
    news: asyncio.Queue[str | None],
    *,
    result: Callable[[EditResult], str],
    error: Callable[[EditError], str],
) -> StreamingResponse:
    """Return the response that streams the events in `news` and ends with the outcome of `edit`.

    `result` and `error` write the last event. Closing the stream cancels the edit.

    Raises:
        EditError: the edit failed before its first event, so that a status can say so.
    """
    events = _events(edit, news, result=result, error=error)
    first = await anext(events)
    return respond(_resume(first, events), {})


async def _events(
    edit: asyncio.Task[EditResult],
    news: asyncio.Queue[str | None],
    *,
    result: Callable[[EditResult], str],
    error: Callable[[EditError], str],
) -> AsyncGenerator[str]:
    edit.add_done_callback(lambda _: news.put_nowait(None))
    has_begun = False
    try:
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    event = await news.get()
            except TimeoutError:
                event = KEEP_ALIVE
            if event is None:
                break
            has_begun = True
            yield event
        yield result(edit.result())
    except EditError as fault:
        if not has_begun:
            raise
        yield error(fault)
    finally:
        edit.cancel()


async def _resume(first: str, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event
