"""Callers of the HTTP entry point, and the entry point over an editor of fakes: no sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retouch.errors import EditError
from retouch.lifecycle import ModelHost
from retouch.schema import EXAMPLE, EditRequest, ErrorBody
from retouch.settings import Settings
from retouch.storage.port import Store
from retouch.web.app import App
from retouch.web.edit import EditEndpoint
from retouch.web.jobs import JobEndpoint
from retouch.web.metrics import Metrics
from retouch.web.workers import Board
from support.fakes import REQUEST, URL, Clock, FakeStore, House, until
from support.settings import build_settings


def open_host(settings: Settings, house: House | None, *, store: Store | None = None) -> ModelHost:
    """A host as it is once its model is loaded, or without a house while it still loads."""
    return ModelHost(
        settings,
        store=store or (house.store if house else FakeStore()),
        editor=house.editor if house else None,
    )


def build_board(count: int = 2, *, clock: Clock | None = None) -> Board:
    """The board of so many workers, of which none has started; its clock stands unless it is given."""
    return Board(Board.open_file(count), count, clock_s=clock or Clock())


@dataclass
class Caller:
    """Someone who sends one body, waits for an answer, and may leave."""

    accept: str = "application/json"
    host: str = "retouch.example"
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def ask(self, body: bytes = b"") -> Request:
        pieces = [body]

        async def receive() -> Message:
            if pieces:
                return {"type": "http.request", "body": pieces.pop()}
            await self.left.wait()
            return {"type": "http.disconnect"}

        headers = {"accept": self.accept, "host": self.host, "content-type": "application/json"}
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/edit",
            "scheme": "http",
            "server": ("127.0.0.1", 3000),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "state": {"job_id": "j-1", "request_id": "r-1"},
        }
        return Request(scope, receive)


async def answer_edit(edits: EditEndpoint, request: Request) -> Response:
    response = edits.respond(await edits.bodies.read(request), request)
    return await response


class Endpoint:
    """`POST /edit` over an editor of fakes."""

    def __init__(self, house: House | None = None, **settings: Any) -> None:
        self.house = house or House()
        host = open_host(build_settings(**settings), self.house)
        self.metrics = Metrics(host)
        self.edits = EditEndpoint(host, self.metrics)

    async def answer(
        self, caller: Caller | None = None, request: EditRequest = REQUEST
    ) -> Response:
        body = request.model_dump_json(exclude_unset=True).encode()
        return await answer_edit(self.edits, (caller or Caller()).ask(body))

    @property
    def counts(self) -> str:
        return bytes(self.metrics.response().body).decode()

    async def require_idle(self) -> None:
        await until(lambda: not self.house.engine.running and not self.house.admission.in_progress)
        await until(lambda: not self.edits.running)
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


BODY = {**EXAMPLE, "image_url": URL}


def settings(**changes: Any) -> Settings:
    return build_settings(**({"max_image_bytes": 1024} | changes))


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    """What BentoML is to the app: it says what came through."""
    await JSONResponse({"path": scope["path"]})(scope, receive, send)


async def require_unreached(scope: Scope, receive: Receive, send: Send) -> None:
    pytest.fail("the request got through")


def raising(error: BaseException) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


def build_app(host: ModelHost, app: ASGIApp = inner) -> App:
    metrics = Metrics(host)
    edits = EditEndpoint(host, metrics)
    return App(app, host=host, edits=edits, jobs=JobEndpoint(host, edits), metrics=metrics)


@asynccontextmanager
async def client(
    app: ASGIApp = inner,
    *,
    host: ModelHost | None = None,
    url: str = "http://retouch.example",
    **changes: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_app(host or open_host(settings(**changes), House()), app))
    async with httpx.AsyncClient(transport=transport, base_url=url) as http:
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
