"""Server-sent events of an edit: progress while it runs, then its result or its error."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic import BaseModel
from starlette.responses import StreamingResponse

from retouch.errors import EditError
from retouch.schema import EditResult, Progress, error_body

KEEP_ALIVE_S = 15.0
_KEEP_ALIVE = ": still working\n\n"


def format_event(name: str, body: BaseModel) -> str:
    """Format one server-sent event."""
    return f"event: {name}\ndata: {body.model_dump_json()}\n\n"


async def stream(
    edit: asyncio.Task[EditResult],
    news: asyncio.Queue[Progress | None],
    *,
    request_id: str,
) -> StreamingResponse:
    """Return the response that streams `news` and ends with what `edit` comes to.

    Closing the stream cancels the edit.

    Raises:
        EditError: the edit failed before its first event, so that a status can say so.
    """
    events = _events(edit, news, request_id=request_id)
    first = await anext(events)
    return StreamingResponse(
        _resume(first, events),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _events(
    edit: asyncio.Task[EditResult],
    news: asyncio.Queue[Progress | None],
    *,
    request_id: str,
) -> AsyncGenerator[str]:
    edit.add_done_callback(lambda _: news.put_nowait(None))
    has_begun = False
    try:
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    progress = await news.get()
            except TimeoutError:
                yield _KEEP_ALIVE
                continue
            if progress is None:
                break
            has_begun = True
            yield format_event("progress", progress)
        yield format_event("result", edit.result())
    except EditError as error:
        if not has_begun:
            raise
        yield format_event("error", error_body(error, request_id=request_id))
    finally:
        edit.cancel()


async def _resume(first: str, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event
