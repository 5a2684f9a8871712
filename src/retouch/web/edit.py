"""The door for edits: one request to one answer, or to a stream of progress that ends in one."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import JSONResponse, Response, StreamingResponse

from retouch.editing.events import log_failure, log_success
from retouch.editing.steps import ignore
from retouch.errors import Cancelled, DeadlineExceeded, EditError, InternalError
from retouch.lifecycle import ModelHost
from retouch.logs import bind
from retouch.schema import EditRequest, EditResult, Progress, error_body
from retouch.web.metrics import Metrics
from retouch.web.request_context import RequestContext
from retouch.web.sse import format_event

# An edit ends itself at its deadline; one that does not (a hung device) is answered for after this.
_GRACE_S = 15.0
_KEEP_ALIVE_S = 15.0


class EditEndpoint:
    """Answers edit requests with the studio's editor."""

    def __init__(self, studio: ModelHost, metrics: Metrics) -> None:
        self._studio = studio
        self._metrics = metrics
        self._running: set[asyncio.Task[EditResult]] = set()  # the loop itself keeps no task alive

    async def answer(self, request: EditRequest, exchange: RequestContext) -> Response:
        """Edit and answer; the edit ends if the caller leaves.

        Raises:
            EditError: any. Once a stream has begun it is the last event instead.
        """
        if exchange.wants_events:
            events = self._stream(request, exchange)
            first = await anext(events)  # or an error, which is told by a status then
            return StreamingResponse(
                _resume(first, events),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        result = await self._run(request, exchange, ignore)
        return JSONResponse(result.model_dump(mode="json"))

    async def _stream(self, request: EditRequest, exchange: RequestContext) -> AsyncGenerator[str]:
        news: asyncio.Queue[Progress | None] = asyncio.Queue()
        run = asyncio.create_task(self._run(request, exchange, news.put_nowait))
        run.add_done_callback(lambda _: news.put_nowait(None))
        run.add_done_callback(self._forget)
        has_begun = False
        try:
            while True:
                try:
                    async with asyncio.timeout(_KEEP_ALIVE_S):
                        progress = await news.get()
                except TimeoutError:
                    yield ": still working\n\n"
                    continue
                if progress is None:
                    break
                has_begun = True
                yield format_event("progress", progress)
            try:
                yield format_event("result", run.result())
            except EditError as error:
                if not has_begun:
                    raise
                yield format_event("error", error_body(error, request_id=exchange.request_id))
        finally:
            run.cancel()

    async def _run(
        self, request: EditRequest, exchange: RequestContext, progress: Callable[[Progress], None]
    ) -> EditResult:
        self._metrics.count_inside(1)
        try:
            with bind(exchange.request_id, private=(request.prompt, request.negative_prompt or "")):
                return await self._run_logged(request, exchange, progress)
        finally:
            self._metrics.count_inside(-1)

    async def _run_logged(
        self, request: EditRequest, exchange: RequestContext, progress: Callable[[Progress], None]
    ) -> EditResult:
        try:
            result = await self._run_while_awaited(request, exchange, progress)
        except asyncio.CancelledError:  # how a stream hears that its reader left
            self._tell_failure(Cancelled("the caller went away"), exchange)
            raise
        except EditError as error:
            self._tell_failure(error, exchange, cause=error)
            raise
        except Exception as raised:
            fault = InternalError("an internal error")
            self._tell_failure(fault, exchange, cause=raised)
            raise fault from raised
        self._metrics.count_success(result)
        log_success(result)
        return result

    def _tell_failure(
        self, error: EditError, exchange: RequestContext, *, cause: Exception | None = None
    ) -> None:
        log_failure(error, exchange.job_id, cause=cause)
        self._metrics.count_failure(error.code)

    async def _run_while_awaited(
        self, request: EditRequest, exchange: RequestContext, progress: Callable[[Progress], None]
    ) -> EditResult:
        editor = self._studio.editor
        edit = asyncio.create_task(
            editor.run(
                request, job_id=exchange.job_id, request_id=exchange.request_id, progress=progress
            )
        )
        self._running.add(edit)
        edit.add_done_callback(self._forget)
        left = asyncio.create_task(exchange.wait_until_left())
        limit_s = self._studio.settings.job_timeout_seconds + _GRACE_S
        try:
            done, _ = await asyncio.wait(
                {edit, left}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            if edit in done:
                return self._complete(edit.result(), exchange)
            if left in done:
                raise Cancelled("the caller went away")
            raise DeadlineExceeded("the edit did not end in time")
        finally:
            left.cancel()
            edit.cancel()

    def _forget(self, edit: asyncio.Task[EditResult]) -> None:
        self._running.discard(edit)
        if not edit.cancelled():
            edit.exception()  # seen, also where nobody waits any more

    def _complete(self, answer: EditResult, exchange: RequestContext) -> EditResult:
        """Give a local link the host the caller used, where PUBLIC_URL names none."""
        link = answer.result.presigned_url
        if not link.startswith("/"):
            return answer
        result = answer.result.model_copy(update={"presigned_url": exchange.base_url + link})
        return answer.model_copy(update={"result": result})


async def _resume(first: str, events: AsyncGenerator[str]) -> AsyncGenerator[str]:
    async with aclosing(events):
        yield first
        async for event in events:
            yield event
