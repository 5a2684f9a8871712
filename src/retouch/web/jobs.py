"""`POST /edit`, and `/jobs/{id}`: edits that outlive their connection."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from retouch.errors import EditError, InvalidRequest
from retouch.jobs.build import build_jobs
from retouch.jobs.live import Caller
from retouch.lifecycle import ModelHost
from retouch.schema import (
    EditRequest,
    EditResult,
    ErrorBody,
    Job,
    Progress,
    error_body,
    restore_error,
)
from retouch.web import edit, sse
from retouch.web.edit import EditEndpoint
from retouch.web.files import complete_link

_ASYNC = re.compile(r"(^|[,;\s])respond-async($|[,;\s])", re.IGNORECASE)
_MAX_KEY_CHARACTERS = 255
_EVENTS = {EditResult: "result", ErrorBody: "error", Progress: "progress"}


class JobEndpoint:
    """Answers for jobs, and for edits that may become one."""

    def __init__(self, host: ModelHost, edits: EditEndpoint) -> None:
        self._edits = edits
        self.jobs = build_jobs(host, self._run)

    def start(self) -> None:
        """Begin the work in the background. Call it in the event loop, once the store is open."""
        self.jobs.start()

    async def post(self, request: Request) -> Response:
        """Edit and answer, or begin a job: by Prefer: respond-async, an Idempotency-Key or a webhook.

        A job goes on when its caller disconnects. The same request with the same Idempotency-Key gets
        its answer.

        Raises:
            EditError: any.
        """
        is_async = bool(_ASYNC.search(",".join(request.headers.getlist("prefer"))))
        key = _read_key(request)
        asked = await self._edits.bodies.read(request)
        if not (is_async or key or asked.webhook):
            response = self._edits.respond(asked, request)
            del asked  # as below
            return await response
        caller = _caller(request)
        if key:
            job = await self.jobs.accept_repeatable(asked, key, caller)
        else:
            job = await self.jobs.accept(asked, request.state.job_id, caller, is_new=True)
        del asked  # the edit releases an image in it once it is decoded
        if is_async:
            return _answer(job, request, accepted=True)
        if sse.is_wanted(request):
            return self._stream(job, request)
        return _answer_edit(await self.jobs.wait(job.id, caller.owner), request)

    async def answer(self, request: Request) -> Response:
        """Answer `/jobs/{id}` by the request's method.

        Raises:
            EditError: any.
        """
        others = {"PUT": self.put, "DELETE": self.delete}
        return await others.get(request.method, self.get)(request)

    async def put(self, request: Request) -> Response:
        """Begin the job of this id, or find it if this very request began it before.

        Return it, or stream it until its end.

        Raises:
            EditError: as `Jobs.accept`.
        """
        asked = await self._edits.bodies.read(request)
        job = await self.jobs.accept(asked, _job_id(request), _caller(request))
        del asked  # as in `post`
        return self._stream(job, request) if sse.is_wanted(request) else _answer(job, request)

    async def get(self, request: Request) -> Response:
        """Return a job, or stream it until its end.

        Raises:
            EditError: as `Jobs.get`.
        """
        job = await self.jobs.get(_job_id(request), _caller(request).owner)
        if sse.is_wanted(request):
            return self._stream(job, request)
        return _answer(job, request, status=200)

    async def delete(self, request: Request) -> Response:
        """Cancel a job; one that has ended stays as it is.

        Raises:
            EditError: as `Jobs.cancel`.
        """
        job = await self.jobs.cancel(_job_id(request), _caller(request).owner)
        return _answer(job, request)

    async def _run(
        self,
        request: EditRequest,
        job_id: str,
        caller: Caller,
        progress: Callable[[Progress], None],
    ) -> EditResult:
        of_edit = edit.Caller(job_id, caller.request_id, caller.base_url, entry="job")
        run = self._edits.run(request, of_edit, progress=progress)
        del request  # as in `EditEndpoint.run`
        return await run

    def _stream(self, job: Job, request: Request) -> StreamingResponse:
        return sse.respond(_keep_alive(self._events(job.id, request)), _location(job))

    async def _events(self, job_id: str, request: Request) -> AsyncGenerator[str]:
        try:
            async for job in self.jobs.watch(job_id, _caller(request).owner):
                answer = _complete(job, request).answer
                body = answer or job.progress or Progress(stage="queue")
                yield sse.format_event(_EVENTS[type(body)], body)
        except EditError as error:  # the store failed, or the job has expired
            body = error_body(error, request_id=request.state.request_id)
            yield sse.format_event("error", body)


async def _keep_alive(events: AsyncGenerator[str]) -> AsyncIterator[str]:
    """Yield `events`, and a comment where none comes for a while. Closing it closes them."""
    async with aclosing(events):
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                await asyncio.wait([coming], timeout=sse.KEEP_ALIVE_S)
                if not coming.done():
                    yield sse.KEEP_ALIVE
                elif (text := coming.result()) is None:
                    return
                else:
                    yield text
                    coming = asyncio.ensure_future(anext(events, None))
        finally:
            coming.cancel()
            await asyncio.wait([coming])


def _job_id(request: Request) -> str:
    """Return the id in the path: one in capitals, as macOS makes UUIDs, is the same (RFC 9562, 4)."""
    return str(request.path_params["id"]).lower()


def _caller(request: Request) -> Caller:
    return Caller(
        owner=request.state.key or "",
        request_id=request.state.request_id,
        base_url=str(request.base_url).rstrip("/"),
    )


def _read_key(request: Request) -> str:
    key = request.headers.get("idempotency-key", "").strip()
    if len(key) > _MAX_KEY_CHARACTERS:
        fault = f"must have at most {_MAX_KEY_CHARACTERS} characters"
        raise InvalidRequest.for_fields({"Idempotency-Key": fault})
    return key


def _location(job: Job) -> dict[str, str]:
    return {"Location": f"/jobs/{job.id}"}


def _complete(job: Job, request: Request) -> Job:
    if job.answer is None:
        return job
    complete = partial(complete_link, base_url=str(request.base_url).rstrip("/"))
    return job.model_copy(update={"answer": job.answer.change_each(complete)})


def _answer(
    job: Job, request: Request, *, status: int | None = None, accepted: bool = False
) -> JSONResponse:
    """Return the job: 202 before its end or as `accepted`, else 200, unless `status` says otherwise."""
    headers = _location(job) | ({"Preference-Applied": "respond-async"} if accepted else {})
    if status is None:
        status = 200 if job.answer and not accepted else 202
    body = _complete(job, request).model_dump(mode="json")
    return JSONResponse(body, status_code=status, headers=headers)


def _answer_edit(job: Job, request: Request) -> JSONResponse:
    """Return what `POST /edit` answers without a job.

    Raises:
        EditError: the edit failed.
    """
    answer = _complete(job, request).answer
    if isinstance(answer, ErrorBody):
        raise restore_error(answer)
    assert isinstance(answer, EditResult)  # noqa: S101 - the job has ended
    return JSONResponse(answer.model_dump(mode="json"), headers=_location(job))
