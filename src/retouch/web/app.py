"""The outermost layer: request id, routes, API key, body limit, and one envelope for every error.

BentoML answers unknown routes, malformed bodies and crashes in shapes of its own and sets no limit on
a body, so nothing reaches it that has not been judged here.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retouch.errors import (
    EditError,
    InternalError,
    MethodNotAllowed,
    ModelError,
    NotReady,
    Overloaded,
    RouteNotFound,
    Unauthorized,
)
from retouch.lifecycle import ModelHost
from retouch.logs import bind, event
from retouch.schema import error_body
from retouch.storage.local import LocalStore
from retouch.web import pages
from retouch.web.auth import ApiKeyAuth
from retouch.web.body import BodyReader, drain, parse_request
from retouch.web.files import serve_file
from retouch.web.metrics import Metrics
from retouch.web.openapi import openapi_document
from retouch.web.request_context import RequestContext, open_request_context, replay

_log = logging.getLogger(__name__)
_FILES = "/files/"
_READ = ("GET", "HEAD")
_DRAIN_BYTES, _DRAIN_S = 64 << 20, 5.0

Answer = Callable[[RequestContext], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """What is at a path: our own answer, or None for BentoML's. `open` needs no API key."""

    methods: tuple[str, ...] = _READ
    answer: Answer | None = None
    open: bool = False
    quiet: bool = False


class App:
    """The ASGI middleware round BentoML's app."""

    def __init__(self, app: ASGIApp, *, studio: ModelHost, metrics: Metrics) -> None:
        self._app = app
        self._studio = studio
        self._metrics = metrics
        settings = studio.settings
        self._keys = ApiKeyAuth(settings.api_keys)
        self._bodies = BodyReader(
            max_bytes=settings.max_body_bytes,
            timeout_s=settings.timeout_seconds,
            retry_after_s=self._retry_after_s,
        )
        probe = Route(answer=self._readyz, open=True, quiet=True)
        alive = Route(answer=self._livez, open=True, quiet=True)
        self._routes = {
            "/": Route(answer=pages.answer_page, open=True),
            "/sample.jpg": Route(answer=pages.answer_sample, open=True),
            "/demo.webp": Route(answer=pages.answer_strip, open=True),
            "/docs": Route(answer=pages.answer_docs, open=True),
            "/openapi.json": Route(answer=self._openapi),
            "/metrics": Route(answer=self._answer_metrics, quiet=True),
            "/livez": alive,
            "/healthz": alive,
            "/readyz": probe,
            "/ping": Route(answer=self._ping, open=True, quiet=True),
            "/edit": Route(methods=("POST",)),
            "/schema.json": Route(),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or let BentoML answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = open_request_context(scope, receive)
        began = time.perf_counter()
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                name = (b"x-request-id", exchange.request_id.encode())
                message["headers"] = [*message.get("headers", ()), name]
            await send(message)

        with bind(exchange.request_id):
            route = self._route(scope["path"])
            try:
                await self._answer(route, exchange, scope, send_named)
            except Exception as raised:
                if status:
                    raise
                await self._drain(exchange)
                await envelope(raised, exchange)(scope, receive, send_named)
            finally:
                if not route.quiet:
                    ms = 1000 * (time.perf_counter() - began)
                    event(_log, "http.answered", method=scope["method"], status=status, ms=ms)

    def _retry_after_s(self) -> int:
        try:
            return self._studio.editor.retry_after_s
        except (ModelError, NotReady):
            return 1

    @staticmethod
    async def _drain(exchange: RequestContext) -> None:
        """Let a body that is refused arrive where the connection ends with the answer."""
        headers = exchange.request.headers
        if exchange.ends_connection and not exchange.is_read and "expect" not in headers:
            await drain(exchange.receive, max_bytes=_DRAIN_BYTES, timeout_s=_DRAIN_S)

    def _route(self, path: str) -> Route:
        if path.startswith(_FILES) and not self._studio.settings.uses_s3:
            return Route(answer=self._file, open=True)
        return self._routes.get(path, Route(methods=(), open=True))

    async def _answer(
        self, route: Route, exchange: RequestContext, scope: Scope, send: Send
    ) -> None:
        if not route.methods:
            raise RouteNotFound("there is nothing here; /docs lists what there is")
        if scope["method"] not in route.methods:
            raise MethodNotAllowed(
                f"use {' or '.join(route.methods)}", details={"allow": list(route.methods)}
            )
        if not route.open:
            self._keys.require(exchange.request.headers)
        if route.answer is not None:
            response = await route.answer(exchange)
            await response(scope, exchange.receive, send)
        elif scope["method"] == "POST":
            async with self._bodies.read(exchange.request.headers, exchange.receive) as body:
                parse_request(body)
                await self._app(scope, replay(body, exchange.receive), send)
        else:
            await self._app(scope, exchange.receive, send)

    async def _file(self, exchange: RequestContext) -> Response:
        store = self._studio.store
        assert isinstance(store, LocalStore)  # noqa: S101 - the route exists for no other
        exchange.request.scope["path_params"] = {"key": exchange.request.url.path[len(_FILES) :]}
        return await serve_file(store, exchange.request)

    async def _openapi(self, _: RequestContext) -> Response:
        return JSONResponse(openapi_document())

    async def _answer_metrics(self, _: RequestContext) -> Response:
        return self._metrics.response()

    async def _livez(self, _: RequestContext) -> Response:
        if self._studio.failed:
            raise ModelError("the model could not be loaded; the service's log says why")
        return PlainTextResponse("alive\n")

    async def _readyz(self, _: RequestContext) -> Response:
        model = self._studio.editor.info.model
        return PlainTextResponse(f"ready: {model}\n")

    async def _ping(self, exchange: RequestContext) -> Response:
        """Answer as Runpod's load balancer reads it: 204 while loading, 200 when ready."""
        try:
            return await self._readyz(exchange)
        except NotReady:
            return Response(status_code=204)


def envelope(raised: Exception, exchange: RequestContext) -> Response:
    """Return any failure in the error envelope; what nobody foresaw is logged and told as nothing."""
    if isinstance(raised, EditError):
        error = raised
    else:
        error = InternalError("an internal error; the log has it under this request id")
        event(_log, "http.failed", level=logging.ERROR, cause=raised)
    headers: dict[str, str] = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, NotReady):
        headers["Retry-After"] = "5"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.details["allow"])
    if type(error) is Unauthorized:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(error, request_id=exchange.request_id).model_dump(mode="json")
    return JSONResponse(body, status_code=error.status, headers=headers)
