"""Callers at the HTTP door, and the door with a house behind it: no sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retouch.errors import EditError
from retouch.lifecycle import ModelHost
from retouch.schema import EXAMPLE, EditRequest, ErrorBody
from retouch.settings import Settings
from retouch.storage.port import Store
from retouch.web.app import App
from retouch.web.edit import EditEndpoint
from retouch.web.metrics import Metrics
from retouch.web.request_context import RequestContext, current, open_request_context
from support.fakes import REQUEST, FakeStore, House, until


def open_studio(
    settings: Settings, house: House | None, *, store: Store | None = None
) -> ModelHost:
    """A studio as it is once its model is loaded, or without a house while it still loads."""
    studio = ModelHost(settings)
    studio._store = store or (house.store if house else FakeStore())  # noqa: SLF001 - no wiring here
    studio._editor = house.editor if house else None  # noqa: SLF001 - as above
    return studio


@dataclass
class Caller:
    """Someone who waits for an answer, and may leave."""

    accept: str = "application/json"
    host: str = "retouch.example"
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    def exchange(self) -> RequestContext:
        headers = {"accept": self.accept, "host": self.host, "x-request-id": "r-1"}
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/edit",
            "scheme": "http",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        return open_request_context(scope, self.receive)


class Door:
    """The door with a house behind it."""

    def __init__(self, house: House | None = None, **settings: Any) -> None:
        self.house = house or House()
        self.metrics = Metrics()
        studio = open_studio(Settings(_env_file=None, **settings), self.house)
        self.edits = EditEndpoint(studio, self.metrics)

    async def answer(
        self, caller: Caller | None = None, request: EditRequest = REQUEST
    ) -> Response:
        return await self.edits.answer(request, (caller or Caller()).exchange())

    @property
    def counts(self) -> str:
        return bytes(self.metrics.response().body).decode()

    async def require_idle(self) -> None:
        await until(lambda: not self.house.engine.running and not self.house.admission.in_progress)
        await until(lambda: not self.edits._running)  # noqa: SLF001 - that none leaks is the claim
        assert "retouch_edits_inside 0.0" in self.counts


def parse_events(text: str) -> list[tuple[str, dict[str, Any]]]:
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


async def read(response: Response) -> str:
    assert isinstance(response, StreamingResponse)
    return "".join([str(piece) async for piece in response.body_iterator])


def streaming() -> Caller:
    return Caller(accept="text/event-stream")


BODY = dict(EXAMPLE)


def settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, **({"max_image_bytes": 1024} | changes))


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    """What BentoML is to the middleware: it says what came through."""
    body = b""
    more = scope["method"] == "POST"
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    answer = {"path": scope["path"], "body": body.decode(), "job_id": current.get().job_id}
    await JSONResponse(answer)(scope, receive, send)


async def require_unreached(scope: Scope, receive: Receive, send: Send) -> None:
    pytest.fail("the request got through")


def raising(error: BaseException) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


@asynccontextmanager
async def client(
    app: ASGIApp = inner, *, studio: ModelHost | None = None, **changes: Any
) -> AsyncIterator[httpx.AsyncClient]:
    front = App(app, studio=studio or open_studio(settings(**changes), House()), metrics=Metrics())
    transport = httpx.ASGITransport(front)
    async with httpx.AsyncClient(transport=transport, base_url="http://retouch.example") as http:
        yield http


def require_error(response: httpx.Response, kind: type[EditError]) -> dict[str, Any]:
    """The answer is this error in the envelope, with its id in body and header."""
    body: dict[str, Any] = response.json()
    ErrorBody.model_validate(body)
    error = body["error"]
    assert (response.status_code, error["type"], error["details"]["code"]) == (
        kind.status,
        kind.type,
        kind.code,
    )
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == error["details"]["request_id"]
    assert body["status"] == "error"
    return error  # type: ignore[no-any-return]
