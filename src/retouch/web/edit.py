"""`POST /edit`: one request to one answer, or to a stream of progress that ends in one."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from retouch.editing.events import log_failure, log_success
from retouch.editing.job import ignore
from retouch.editing.previews import Previews
from retouch.errors import Cancelled, EditError, InternalError
from retouch.lifecycle import ModelHost
from retouch.logs import bind
from retouch.schema import EditRequest, EditResult, Progress, error_body
from retouch.web import sse
from retouch.web.body import BodyReader
from retouch.web.files import complete_link
from retouch.web.metrics import Metrics


async def _never() -> None:
    await asyncio.get_running_loop().create_future()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who an edit is for, and by which `entry`. `job_id` is ours; `request_id` may be the caller's own.

    `disconnected` returns when the caller has closed the connection; `base_url` is the scheme and
    host that the caller used, for links to the local store.
    """

    job_id: str
    request_id: str
    base_url: str = ""
    entry: Literal["edit", "job", "openai"] = "edit"
    disconnected: Callable[[], Awaitable[None]] = _never

    @classmethod
    def of(cls, request: Request) -> "Caller":
        """Return the caller of an HTTP request to which `App` has given its ids."""

        async def disconnected() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        return cls(
            job_id=request.state.job_id,
            request_id=request.state.request_id,
            base_url=str(request.base_url).rstrip("/"),
            disconnected=disconnected,
        )


class EditEndpoint:
    """Answers edit requests with the host's editor."""

    def __init__(self, host: ModelHost, metrics: Metrics) -> None:
        self._host = host
        self._metrics = metrics
        settings = host.settings
        self.bodies = BodyReader(
            max_bytes=settings.max_body_bytes,
            max_file_bytes=settings.max_image_bytes,
            timeout_s=settings.timeout_seconds,
        )
        self.running: set[asyncio.Task[EditResult]] = set()
        """Edits, cancelled ones until they have ended too: the loop itself keeps no task alive."""

    async def respond(self, asked: EditRequest, request: Request) -> Response:
        """Make the edit `asked` for by `request`, and answer; a caller that disconnects cancels it.

        Raises:
            EditError: any. Once a stream has begun it is the last event instead.
        """
        caller = Caller.of(request)
        news: asyncio.Queue[str | None] = asyncio.Queue()

        def report(progress: Progress) -> None:
            news.put_nowait(sse.format_event("progress", progress))

        run = self.run(asked, caller, progress=report)
        del asked  # the edit releases an image in it once it is decoded
        if sse.is_wanted(request):
            return await sse.stream(
                self.spawn(run),
                news,
                result=partial(sse.format_event, "result"),
                error=lambda error: sse.format_event(
                    "error", error_body(error, request_id=caller.request_id)
                ),
            )
        return JSONResponse((await run).model_dump(mode="json"))

    async def run(
        self,
        request: EditRequest,
        caller: Caller,
        *,
        progress: Callable[[Progress], None] = ignore,
        previews: Previews | None = None,
    ) -> EditResult:
        """Edit, and log and count how it ended.

        Raises:
            EditError: any; `InternalError` for what nobody foresaw.
        """
        private, profile = (request.prompt, request.negative_prompt or ""), request.profile
        fail = partial(self._record_failure, caller=caller, profile=profile)
        edit = self._edit(request, caller, progress, previews)
        del request  # as in `_edit`
        with self._metrics.in_progress(), bind(caller.request_id, private=private):
            try:
                result = await edit
            except asyncio.CancelledError:  # a stream's reader has gone, or a job is cancelled
                fail(Cancelled("the caller left or cancelled"))
                raise
            except EditError as error:
                fail(error, cause=error)
                raise
            except Exception as raised:
                fault = InternalError()
                fail(fault, cause=raised)
                raise fault from raised
            self._metrics.count_success(result, entry=caller.entry)
            log_success(result)
        return result

    async def _edit(
        self,
        request: EditRequest,
        caller: Caller,
        progress: Callable[[Progress], None],
        previews: Previews | None,
    ) -> EditResult:
        """Wait for the edit, or cancel it when the caller disconnects."""
        edit = self.spawn(
            self._host.run(
                request,
                job_id=caller.job_id,
                request_id=caller.request_id,
                progress=progress,
                previews=previews,
            )
        )
        del request  # with the image in it, which the edit releases once it is decoded
        disconnected = asyncio.ensure_future(caller.disconnected())
        complete = partial(complete_link, base_url=caller.base_url)
        try:
            await asyncio.wait({edit, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            if not edit.done():
                raise Cancelled("the caller disconnected")
            return edit.result().change_each(complete)
        except EditError as error:
            if results := error.details.get("results"):
                error.details["results"] = [complete(result) for result in results]
            raise
        finally:
            disconnected.cancel()
            edit.cancel()

    def spawn(self, run: Coroutine[Any, Any, EditResult]) -> asyncio.Task[EditResult]:
        """Run an edit in a task of its own, which is kept until it has ended."""
        task = asyncio.create_task(run)
        self.running.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[EditResult]) -> None:
        self.running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio logs it when its caller has gone

    def _record_failure(
        self,
        error: EditError,
        *,
        caller: Caller,
        profile: str | None,
        cause: Exception | None = None,
    ) -> None:
        log_failure(error, caller.job_id, cause=cause)
        self._metrics.count_failure(error.code, entry=caller.entry, profile=profile)
