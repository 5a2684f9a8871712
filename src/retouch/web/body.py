"""Reads a request body within limits of bytes, time and memory, and parses it once: JSON or a form."""

import asyncio
import codecs
import re
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from retouch.errors import (
    BodyTooLarge,
    Cancelled,
    DeadlineExceeded,
    MalformedBody,
    Overloaded,
    UnsupportedContentType,
)
from retouch.schema import EditRequest, invalid_request
from retouch.web.form import MAX_FRAME_BYTES, Form, FormParser, parse_edit_form

_JSON, _FORM = "application/json", "multipart/form-data"
_WHOLE_BODIES = 4
_MAX_TEXTS = 8  # those that may be images, and the prompts
_IMAGE = re.compile(rb'" *data:', re.IGNORECASE)
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_POSITION = re.compile(r" at line \d+ column \d+$")  # alone: the rest may quote the body
_NOT_AN_OBJECT = ("json_invalid", "model_type", "model_attributes_type")


Body = bytearray | Form
"""A body as it came: the bytes of JSON, or a form."""


class _Json:
    """Gathers a body of JSON, as `FormParser` does a form."""

    def __init__(self) -> None:
        self._body = bytearray()

    def write(self, piece: bytes) -> None:
        self._body += piece

    def close(self) -> bytearray:
        if self._body[:3] == codecs.BOM_UTF8:  # Windows' tools put it in front (RFC 8259, 8.1)
            del self._body[:3]
        return self._body

    def release(self) -> None:
        self._body = bytearray()


class BodyReader:
    """Reads bodies; those in memory at once, parsed ones included, are bounded to four of the largest.

    A body counts while it is read, and its request for as long as that is referenced: whoever drops
    the request when its image is decoded makes room for the next body.
    """

    def __init__(self, *, max_bytes: int, max_file_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._max_file_bytes = max_file_bytes
        self._timeout_s = timeout_s
        self.held_bytes = 0

    async def read(self, request: Request) -> EditRequest:
        """Read the body of `request` and return the edit it asks for.

        Raises:
            EditError: as `receive`.
            MalformedBody: the body is neither one JSON object nor a form.
            InvalidRequest: fields are wrong; each is named.
        """
        async with self.receive(request) as body:
            edit = parse_edit_form(body) if isinstance(body, Form) else parse_request(body)
        self.hold(edit)
        return edit

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[Body]:
        """Read the body of `request`; it counts as held until the block ends.

        Raises:
            UnsupportedContentType: the body is declared as neither JSON nor a form.
            BodyTooLarge: it is, or is declared, larger than allowed.
            SourceTooLarge: a file in it is.
            Overloaded: too many large bodies are held.
            DeadlineExceeded: it did not arrive in time.
            Cancelled: the caller disconnected.
            MalformedBody: it is not the form that it is declared to be.
        """
        kind = _require_kind(request.headers)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max_bytes:
            raise self._too_large()
        sink: FormParser | _Json = _Json()
        if kind == _FORM:
            content_type = request.headers["content-type"]
            sink = FormParser(content_type, max_file_bytes=self._max_file_bytes)
        count = 0
        try:
            async with asyncio.timeout(self._timeout_s):
                async for piece in request.stream():
                    self._require_room(count, len(piece))
                    count += len(piece)
                    self.held_bytes += len(piece)
                    sink.write(piece)
            yield sink.close()
        except TimeoutError as error:
            raise DeadlineExceeded("the request body did not arrive in time") from error
        except ClientDisconnect as error:
            raise Cancelled("the caller disconnected") from error
        finally:
            self.held_bytes -= count
            sink.release()

    def hold(self, edit: EditRequest) -> None:
        """Count the images in `edit` as held for as long as it is referenced."""
        size_bytes = edit.sources_bytes
        self.held_bytes += size_bytes
        weakref.finalize(edit, self._release, size_bytes).atexit = False

    def _require_room(self, count: int, more: int) -> None:
        if count + more > self._max_bytes:
            raise self._too_large()
        if self.held_bytes + more > _WHOLE_BODIES * self._max_bytes:
            raise Overloaded("too many large requests at once", details={"retry_after": 1})

    def _release(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is over {self._max_bytes} bytes (from MAX_IMAGE_BYTES)")


def _require_kind(headers: Headers) -> str:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (_JSON, _FORM):
        raise UnsupportedContentType(
            f"the body must be sent as Content-Type: {_JSON} or {_FORM}; a file is sent by "
            f"curl -F image=@photo.jpg -F 'prompt=make it warmer' http://HOST/edit"
            ' or in JSON as {"image_url": "data:image/jpeg;base64,...", "prompt": "..."}'
        )
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise UnsupportedContentType("the body must be sent without Content-Encoding")
    return kind


def _measure_images(body: bytes | bytearray) -> int:
    """Return the bytes of all data: URLs in a body; any text may begin like one.

    It is looked for only where the rest of the body may reach, and its end by memchr: 33 MiB take 2 ms.
    """
    total, at = 0, 0
    for _ in range(_MAX_TEXTS):
        found = _IMAGE.search(body, at, at + MAX_FRAME_BYTES)
        if found is None:
            break
        at = body.find(b'"', found.end())
        if at < 0:
            break
        total += at + 1 - found.start()
    return total


def require_small_frame(body: bytes | bytearray) -> None:
    """Raise for a body of JSON in which anything but an image is large.

    35 MB of unknown fields or of empty lists cost the parser gigabytes and minutes.

    Raises:
        MalformedBody: the body is not UTF-8.
        BodyTooLarge: the rest of the body, beside images in it, is over 64 KiB.
    """
    if body[:2] in _UTF_16_MARKS or b"\0" in body[:2]:
        raise MalformedBody("the body must be in UTF-8")
    if len(body) - _measure_images(body) > MAX_FRAME_BYTES:
        raise BodyTooLarge(
            f"beside images the body is over {MAX_FRAME_BYTES} bytes; an image as base64 must be "
            "in image_url and begin with data:image/jpeg;base64, or the like"
        )


def parse_request(body: bytes | bytearray) -> EditRequest:
    """Return the request in `body`.

    Raises:
        BodyTooLarge: as `require_small_frame`.
        MalformedBody: it is not one JSON object.
        InvalidRequest: fields are wrong; each is named.
    """
    require_small_frame(body)
    try:
        return EditRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if not first["loc"] and first["type"] in _NOT_AN_OBJECT:
            where = _POSITION.search(first["msg"])
            fault = f": the fault is{where[0]}" if where else ""
            raise MalformedBody(f"the body must be one JSON object in UTF-8{fault}") from None
        raise invalid_request(error) from None
