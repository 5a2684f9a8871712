"""`POST /v1/images/edits` and `GET /v1/models`: OpenAI's images API over the same edits."""

import asyncio
import base64
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from retouch.editing.previews import Previews
from retouch.errors import EditError, NotReady, Overloaded, Unauthorized
from retouch.lifecycle import ModelHost
from retouch.schema import (
    EditRequest,
    EditResult,
    ImageData,
    ImageOptions,
    ImagesAnswer,
    ImagesError,
    ImagesFault,
    Model,
    ModelList,
    Result,
    TokenDetails,
    Usage,
)
from retouch.web import sse
from retouch.web.edit import Caller, EditEndpoint
from retouch.web.openai_request import name_as_theirs, parse_images_edit

PREFIX = "/v1/"
_TOKEN_PX = 16 * 16
_KEPT_HEADERS = ("allow", "retry-after", "www-authenticate")


@dataclass(frozen=True, slots=True)
class _Answers:
    """Builds the answers to one request from its options and the tokens of its input."""

    options: ImageOptions
    text_tokens: int
    image_tokens: int
    file_format: str

    def build(self, results: Sequence[Result]) -> ImagesAnswer:
        """Return the answer that has these results."""
        result = results[0]
        is_file = self.options.response_format == "b64_json"
        return ImagesAnswer(
            created=int(time.time()),
            data=[
                ImageData(b64_json=one.b64_json) if is_file else ImageData(url=one.presigned_url)
                for one in results
            ],
            output_format=result.content_type.removeprefix("image/"),
            size=f"{result.meta.width}x{result.meta.height}",
            usage=self._count(results),
        )

    def format_completed(self, edit: EditResult) -> str:
        """Return the last events of a stream, one for each image."""
        return "".join(self._format_completed(result) for result in edit.all)

    def _format_completed(self, result: Result) -> str:
        answer = self.build([result]).model_dump(mode="json")
        event: dict[str, Any] = {
            "type": "image_edit.completed",
            **answer.pop("data")[0],
            "created_at": answer.pop("created"),
            "quality": "auto",
            **answer,
        }
        return sse.format_event(event["type"], event)

    def format_partial(self, file: bytes, index: int) -> str:
        """Return the event of an intermediate image."""
        event: dict[str, Any] = {
            "type": "image_edit.partial_image",
            "b64_json": base64.b64encode(file).decode(),
            "partial_image_index": index,
            "created_at": int(time.time()),
            "background": "opaque",
            "output_format": self.file_format,
            "quality": "auto",
            "size": self.options.size,
        }
        return sse.format_event(event["type"], event)

    def _count(self, results: Sequence[Result]) -> Usage:
        read = self.text_tokens + self.image_tokens
        made = sum(one.meta.width * one.meta.height // _TOKEN_PX for one in results)
        return Usage(
            input_tokens=read,
            input_tokens_details=TokenDetails(
                image_tokens=self.image_tokens, text_tokens=self.text_tokens
            ),
            output_tokens=made,
            total_tokens=read + made,
        )


class ImagesEndpoint:
    """Answers OpenAI's clients with the edits of `EditEndpoint`."""

    def __init__(self, host: ModelHost, edits: EditEndpoint) -> None:
        self._host = host
        self._edits = edits

    async def edit(self, request: Request) -> Response:
        """Edit and answer, or stream; the edit is cancelled if the caller disconnects.

        Raises:
            EditError: any. Once a stream has begun it is the last event instead.
        """
        caller = replace(Caller.of(request), entry="openai")
        async with self._edits.bodies.receive(request) as body:
            edit, options = parse_images_edit(body, self._host.editor.info.profiles)
        del body
        self._edits.bodies.hold(edit)
        answers = self._prepare(edit, options)
        news: asyncio.Queue[str | None] = asyncio.Queue()
        index = itertools.count()

        def show(file: bytes) -> None:
            news.put_nowait(answers.format_partial(file, next(index)))

        count = options.partial_images if options.stream else 0
        run = self._edits.run(edit, caller, previews=Previews(count, show) if count else None)
        del edit  # the edit releases the image in it once it is decoded
        if not options.stream:
            answer = answers.build((await run).all)
            return JSONResponse(answer.model_dump(mode="json"))
        return await sse.stream(
            self._edits.spawn(run),
            news,
            result=answers.format_completed,
            error=lambda error: sse.format_event("error", build_error(error)),
        )

    async def models(self, _: Request) -> Response:
        """List what is loaded.

        Raises:
            NotReady: nothing is yet.
            ModelError: nothing can be.
        """
        found = ModelList(data=[Model(id=self._host.editor.info.model)])
        return JSONResponse(found.model_dump(mode="json"))

    def _prepare(self, edit: EditRequest, options: ImageOptions) -> _Answers:
        editor = self._host.editor
        text = editor.steps.engine.count_tokens(edit.prompt)
        images = len(edit.sources) * (editor.info.preset.area_px // _TOKEN_PX)
        return _Answers(options, text, images, file_format=edit.file_format)


def translate_error(error: EditError, response: Response) -> Response:
    """Return `response` with the body in OpenAI's shape; its clients try again as the header says."""
    headers = {name: value for name, value in response.headers.items() if name in _KEPT_HEADERS}
    headers["X-Should-Retry"] = str(error.retryable).lower()
    return JSONResponse(build_error(error), status_code=response.status_code, headers=headers)


def build_error(error: EditError) -> dict[str, Any]:
    """Return the body for `error` in OpenAI's shape."""
    field = next(iter(error.details.get("fields", {})), error.details.get("source"))
    fault = ImagesFault(
        message=name_as_theirs(error.message),
        type=_name_type(error),
        param=field and name_as_theirs(field),
        code=error.code,
    )
    return ImagesError(error=fault).model_dump(mode="json")


def _name_type(error: EditError) -> str:
    if isinstance(error, Unauthorized):
        return "authentication_error"
    if isinstance(error, Overloaded):
        return "rate_limit_error"
    is_callers = error.status < 500 and not isinstance(error, NotReady)  # noqa: PLR2004 - HTTP's
    return "invalid_request_error" if is_callers else "server_error"
