"""Read the server's answers: its picture, or the error that stands for its refusal."""

import base64
import json
from http import HTTPStatus
from typing import Any

from retouch.errors import EditError, EngineDenied, EngineRefused, EngineUnavailable, ModelError
from retouch.remote.server import Answer

_REFUSED = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
_DENIED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_UNAVAILABLE = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    499,  # nginx's, and ours: the other side was told to end the edit
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_MAX_WORDS = 200


def read_picture(answer: Answer) -> bytes:
    """Return the file of the first picture in an answer.

    Raises:
        ModelError: there is none.
        EditError: as `to_error`.
    """
    if answer.status != HTTPStatus.OK:
        raise to_error(answer)
    try:
        return base64.b64decode(read_json(answer)["data"][0]["b64_json"], validate=True)
    except (LookupError, TypeError, ValueError) as error:
        raise ModelError("the engine's answer holds no picture") from error


def read_json(answer: Answer) -> Any:
    """Return the body's JSON.

    Raises:
        ValueError: the body is not JSON.
    """
    try:
        return json.loads(answer.body)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def to_error(answer: Answer) -> EditError:
    """Return the error for an answer that is none of 200.

    A request that cannot succeed is the caller's fault in the server's own words; a key that is
    refused is ours; where the server is busy or away, the caller may try again.
    """
    status = answer.status
    if status in _REFUSED:
        return EngineRefused(f"the engine refuses this edit: {find_words(answer)}")
    if status in _DENIED:
        return EngineDenied(status=status)
    if status in _UNAVAILABLE:
        return EngineUnavailable(f"the engine is busy or starting (status {status})")
    return ModelError(f"the engine failed on this edit (status {status})", words=find_words(answer))


def find_words(answer: Answer) -> str:
    r"""Return what an error body says, in one line of at most 200 printable characters.

    As OpenAI, vLLM and we write it (`error.message`), and as FastAPI does (`detail`).

    >>> find_words(Answer(400, b'{"error": {"message": "too\\nlarge"}}'))
    'too large'
    >>> find_words(Answer(422, b'{"detail": [{"msg": "field required"}]}'))
    'field required'
    >>> find_words(Answer(413, b"<html>"))
    'status 413'
    """
    try:
        found = read_json(answer)
    except ValueError:
        found = None
    for name in ("error", "detail", 0, "message", "msg"):
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name == 0 and found:
            found = found[0]
    if not isinstance(found, str) or not found.strip():
        return f"status {answer.status}"
    words = " ".join("".join(c if c.isprintable() else " " for c in found).split())
    return words if len(words) <= _MAX_WORDS else words[: _MAX_WORDS - 1] + "…"
