"""Reads a request body within bounds of bytes, time and memory, and makes an `EditRequest` of it."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import islice

from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive

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
_IMAGE = re.compile(rb'"data:[^"]*"', re.IGNORECASE)
_NOT_AN_OBJECT = ("json_invalid", "model_type", "model_attributes_type")


class BodyReader:
    """Reads bodies; all that are in memory at once are bounded to the size of eight of the largest."""

    def __init__(
        self, *, max_bytes: int, timeout_s: float, retry_after_s: Callable[[], int] = lambda: 1
    ) -> None:
        self._max_bytes = max_bytes
        self._retry_after_s = retry_after_s
        self._timeout_s = timeout_s
        self._held_bytes = 0

    @asynccontextmanager
    async def read(self, headers: Headers, receive: Receive) -> AsyncIterator[bytes]:
        """Read a body and hold its share of memory until the block ends.

        Raises:
            UnsupportedContentType: it is not declared as JSON.
            BodyTooLarge: it is, or says it is, over the limit.
            Overloaded: too many large bodies are being held.
            DeadlineExceeded: it did not arrive in time.
            Cancelled: the caller left in the middle.
        """
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise UnsupportedContentType("the body must be sent as Content-Type: application/json")
        said = headers.get("content-length", "")
        if said.isascii() and said.isdigit() and int(said[:20]) > self._max_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._fill(body, receive)
            except TimeoutError as error:
                raise DeadlineExceeded("the request body did not arrive in time") from error
            yield bytes(body)
        finally:
            self._held_bytes -= len(body)

    async def _fill(self, body: bytearray, receive: Receive) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Cancelled("the caller went away")
            piece = message.get("body", b"")
            if len(body) + len(piece) > self._max_bytes:
                raise self._too_large()
            if self._held_bytes + len(piece) > _WHOLE_BODIES * self._max_bytes:
                raise Overloaded(
                    "too many large requests at once",
                    details={"retry_after": self._retry_after_s()},
                )
            body += piece
            self._held_bytes += len(piece)
            more = message.get("more_body", False)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is over {self._max_bytes} bytes (from MAX_IMAGE_BYTES)")


async def drain(receive: Receive, *, max_bytes: int, timeout_s: float) -> None:
    """Throw away what is still to come of a body, within bounds.

    A connection that is closed with something unread is reset, and its answer may be lost with it.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while max_bytes > 0:
                message = await receive()
                max_bytes -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    break


def _measure_image(body: bytes) -> int:
    """Count the bytes of the data: URL in a large body; any text may begin as one does."""
    if len(body) <= _MAX_FRAME_BYTES:
        return 0
    found = islice(_IMAGE.finditer(body), _MAX_TEXTS)
    return max((len(text[0]) for text in found), default=0)


def parse_request(body: bytes) -> EditRequest:
    """Return the request in `body`.

    Only an image may be large: 35 MB of unknown fields or of empty lists cost the parser gigabytes
    and minutes.

    Raises:
        BodyTooLarge: it is, beside an image in it.
        MalformedBody: it is not one JSON object.
        InvalidRequest: fields are wrong; each is named.
    """
    if len(body) - _measure_image(body) > _MAX_FRAME_BYTES:
        raise BodyTooLarge(f"beside an image the body is over {_MAX_FRAME_BYTES} bytes")
    try:
        return EditRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if not first["loc"] and first["type"] in _NOT_AN_OBJECT:
            raise MalformedBody("the body must be one JSON object in UTF-8") from None
        raise invalid_request(error) from None
