"""Reads a request body within limits of bytes, time and memory, and parses it once."""

import asyncio
import re
import sys
import weakref

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

_WHOLE_BODIES = 8
_MAX_FRAME_BYTES = 65536
_MAX_TEXTS = 4
_IMAGE = re.compile(rb'"data:', re.IGNORECASE)
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_POSITION = re.compile(r" at line \d+ column \d+$")  # alone: the rest may quote the body
_NOT_AN_OBJECT = ("json_invalid", "model_type", "model_attributes_type")


class BodyReader:
    """Reads bodies; those in memory at once, parsed ones included, are bounded to eight of the largest.

    A body counts while it is read, and its request for as long as that is referenced: whoever drops
    the request when its image is decoded makes room for the next body.
    """

    def __init__(self, *, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self.held_bytes = 0

    async def read(self, request: Request) -> EditRequest:
        """Read the body of `request` and return the edit it asks for.

        Raises:
            UnsupportedContentType: the body is not declared as JSON.
            BodyTooLarge: it is, or is declared, larger than allowed.
            Overloaded: too many large bodies are held.
            DeadlineExceeded: it did not arrive in time.
            Cancelled: the caller disconnected.
            MalformedBody: it is not one JSON object.
            InvalidRequest: fields are wrong; each is named.
        """
        _require_plain_json(request.headers)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                async for piece in request.stream():
                    self._append(body, piece)
            edit = parse_request(body)
        except TimeoutError as error:
            raise DeadlineExceeded("the request body did not arrive in time") from error
        except ClientDisconnect as error:
            raise Cancelled("the caller disconnected") from error
        finally:
            self.held_bytes -= len(body)
        self._hold(edit)
        return edit

    def _append(self, body: bytearray, piece: bytes) -> None:
        if len(body) + len(piece) > self._max_bytes:
            raise self._too_large()
        if self.held_bytes + len(piece) > _WHOLE_BODIES * self._max_bytes:
            raise Overloaded("too many large requests at once", details={"retry_after": 1})
        body += piece
        self.held_bytes += len(piece)

    def _hold(self, edit: EditRequest) -> None:
        size_bytes = sys.getsizeof(edit.image_url)
        self.held_bytes += size_bytes
        weakref.finalize(edit, self._release, size_bytes).atexit = False

    def _release(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is over {self._max_bytes} bytes (from MAX_IMAGE_BYTES)")


def _require_plain_json(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedContentType(
            "the body must be sent as Content-Type: application/json; a file goes into it as "
            '{"image_url": "data:image/jpeg;base64,...", "prompt": "..."}'
        )
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise UnsupportedContentType("the body must be sent without Content-Encoding")


def _measure_image(body: bytes | bytearray) -> int:
    """Return the bytes of the longest data: URL in a large body; any text may begin like one.

    It is looked for only where the rest of the body may reach, and its end by memchr: 33 MiB take 2 ms.
    """
    longest, at = 0, 0
    if len(body) <= _MAX_FRAME_BYTES:
        return longest
    for _ in range(_MAX_TEXTS):
        found = _IMAGE.search(body, at, at + _MAX_FRAME_BYTES)
        if found is None:
            break
        at = body.find(b'"', found.end())
        if at < 0:
            break
        longest = max(longest, at + 1 - found.start())
    return longest


def parse_request(body: bytes | bytearray) -> EditRequest:
    """Return the request in `body`.

    Only an image may be large: 35 MB of unknown fields or of empty lists cost the parser gigabytes
    and minutes.

    Raises:
        BodyTooLarge: the rest of the body, beside an image in it, is over 64 KiB.
        MalformedBody: it is not one JSON object.
        InvalidRequest: fields are wrong; each is named.
    """
    if body[:2] in _UTF_16_MARKS or b"\0" in body[:2]:
        raise MalformedBody("the body must be in UTF-8")
    if len(body) - _measure_image(body) > _MAX_FRAME_BYTES:
        raise BodyTooLarge(
            f"beside an image the body is over {_MAX_FRAME_BYTES} bytes; an image as base64 must be "
            "in image_url and begin with data:image/jpeg;base64, or the like"
        )
    try:
        return EditRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if not first["loc"] and first["type"] in _NOT_AN_OBJECT:
            where = _POSITION.search(first["msg"])
            raise MalformedBody(
                f"the body must be one JSON object in UTF-8{where[0] if where else ''}"
            ) from None
        raise invalid_request(error) from None
