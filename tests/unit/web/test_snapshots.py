"""Every body that a caller can get over HTTP, as files."""

import json
from pathlib import Path

from support.snapshots import require_snapshot
from support.web import Endpoint, read, streaming

from retouch import errors
from retouch.errors import EditError, error_classes
from retouch.web.app import error_response

FOLDER = Path(__file__).parent / "snapshots"
HEADERS = {"retry-after", "allow", "www-authenticate"}
DETAILS: dict[type[EditError], dict[str, object]] = {
    errors.MethodNotAllowed: {"allow": ["POST"]},
    errors.Overloaded: {"retry_after": 17},
    errors.SourceStatusError: {"origin_status": 404},
    errors.SourceServerError: {"origin_status": 503},
}


def lay_out(body: bytes | memoryview) -> str:
    return json.dumps(json.loads(bytes(body)), indent=1)


async def test_success() -> None:
    response = await Endpoint().answer()
    require_snapshot(FOLDER / "success.json", lay_out(response.body))


async def test_a_stream_that_succeeds() -> None:
    require_snapshot(FOLDER / "stream.txt", await read(await Endpoint().answer(streaming())))


async def test_a_stream_that_fails() -> None:
    endpoint = Endpoint()
    endpoint.house.engine.fault = errors.OutOfMemory("the GPU ran out of memory")
    require_snapshot(FOLDER / "stream_error.txt", await read(await endpoint.answer(streaming())))


def build(kind: type[EditError]) -> EditError:
    if kind is errors.InvalidRequest:
        return errors.InvalidRequest.for_fields({"prompt": "must not be blank"})
    message = kind.default_message or "it went wrong"
    return kind(message, details=DETAILS.get(kind), host="never.example")


def test_every_error() -> None:
    bodies = {}
    for kind in error_classes():
        response = error_response(build(kind), request_id="r-1")
        bodies[kind.code] = {
            "status": response.status_code,
            "headers": {name: response.headers[name] for name in HEADERS & {*response.headers}},
            "body": json.loads(bytes(response.body)),
        }
    require_snapshot(FOLDER / "errors.json", json.dumps(bodies, indent=1, sort_keys=True))
