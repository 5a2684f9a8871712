"""The ASGI layer in front of BentoML: request ids, one route table, API keys, one form of error.

BentoML answers unknown routes, malformed bodies and crashes in forms of its own and limits no body, so
`/edit` is answered here, with `Retouch.edit` as its description in `/schema.json`.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retouch import tracing
from retouch.errors import (
    EditError,
    InternalError,
    MethodNotAllowed,
    ModelLost,
    NotReady,
    Overloaded,
    RouteNotFound,
    Unauthorized,
)
from retouch.lifecycle import ModelHost, State
from retouch.logs import bind, event
from retouch.remote.engine import RemoteEngine
from retouch.schema import error_body
from retouch.storage.local import LocalStore
from retouch.web import openai, sse
from retouch.web.auth import ApiKeyAuth, HostCheck
from retouch.web.edit import EditEndpoint
from retouch.web.files import serve_file
from retouch.web.info import build_info
from retouch.web.jobs import JobEndpoint
from retouch.web.metrics import Metrics
from retouch.web.openapi import openapi_document
from retouch.web.pages import page_routes
from retouch.web.standby import HOLD, Hold, write_last_chunks

_log = logging.getLogger(__name__)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_UNLOGGED = frozenset({"/livez", "/healthz", "/readyz", "/ping", "/metrics"})
_NOT_READY_RETRY_AFTER_S = 5


class App:
    """ASGI middleware that answers every request, the schema with BentoML's app."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: ModelHost,
        edits: EditEndpoint,
        jobs: JobEndpoint,
        metrics: Metrics,
        closes: bool = False,
        origins: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """With `closes` a connection ends after its answer, so that the next may go to another worker.

        Pages of `origins` may call on a loopback address too.
        """
        self._app = app
        self._closes = closes
        self._turn = asyncio.Lock()
        self._host = host
        self._metrics = metrics
        settings = host.settings
        keys = ApiKeyAuth(settings.api_keys)
        hosts = HostCheck([*settings.allowed_hosts, settings.public_url, *origins()], keys)
        routes = self._build_routes(keys, jobs, openai.ImagesEndpoint(host, edits))
        self._router = ExceptionMiddleware(
            hosts.protect(Router(routes, redirect_slashes=False)),
            handlers={HTTPException: answer_error, Exception: answer_error},
        )

    def _build_routes(
        self, keys: ApiKeyAuth, jobs: JobEndpoint, images: openai.ImagesEndpoint
    ) -> list[BaseRoute]:
        """Return the route table; `/metrics` may have a key of its own."""
        key = [Middleware(keys.protect)]
        metrics_key = self._host.settings.metrics_key.get_secret_value()
        routes: list[BaseRoute] = [
            *page_routes(),
            Route("/livez", self._livez),
            Route("/healthz", self._livez),
            Route("/readyz", self._readyz),
            Route("/ping", self._ping),
            Route("/edit", jobs.post, methods=["POST"], middleware=key),
            Route("/jobs/{id}", jobs.answer, methods=["GET", "PUT", "DELETE"], middleware=key),
            Route("/v1/images/edits", images.edit, methods=["POST"], middleware=key),
            Route("/v1/models", images.models, methods=["GET"], middleware=key),
            Route("/info", self._info, methods=["GET"], middleware=key),
            Route("/openapi.json", self._openapi, methods=["GET"], middleware=key),
            Route("/schema.json", self._schema, middleware=key),
            Route(
                "/metrics",
                self._metrics_text,
                middleware=[Middleware(ApiKeyAuth((metrics_key,)).protect)] if metrics_key else key,
            ),
        ]
        if not self._host.settings.uses_s3:
            routes.append(Route("/files/{key:path}", self._file))
        return routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and log it; what is not HTTP is BentoML's."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        if scope["method"] in {"POST", "PUT"}:
            # Of a burst one begins in each pass of the event loop: others, such as probes, go between.
            async with self._turn:
                await asyncio.sleep(0)
        scope.setdefault("app", self)  # without one, Starlette's routes answer errors themselves
        ids = _name_request(Headers(scope=scope))
        scope.setdefault("state", {}).update(ids)
        status = 0
        hold = begin_hold(scope, ids["request_id"])

        async def send_named(message: Message) -> None:
            nonlocal status
            if hold:
                hold.follow(message)
            if message["type"] == "http.response.start":
                status = message["status"]
                _describe_span(scope, ids)  # here, because the span is over with the answer
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = ids["request_id"]
                if self._closes:
                    headers["Connection"] = "close"
            await send(message)

        with bind(ids["request_id"]):
            try:
                await self._router(scope, receive, send_named)
            finally:
                if hold:
                    hold.end()
                self._record(scope, status, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count the request, and log it."""
        route = _name_route(scope)
        self._metrics.count_request(route, status, seconds)
        if route not in _UNLOGGED:
            event(
                _log,
                "http.answered",
                method=scope["method"],
                route=route,
                status=status,
                ms=1000 * seconds,
                key=scope["state"].get("key"),
            )

    async def _file(self, request: Request) -> Response:
        store = self._host.store
        assert isinstance(store, LocalStore)  # noqa: S101 - the route exists for no other
        return await serve_file(store, request)

    async def _schema(self, _: Request) -> ASGIApp:
        return self._app

    async def _info(self, _: Request) -> Response:
        info = build_info(
            self._host.editor.info, max_image_bytes=self._host.settings.max_image_bytes
        )
        return JSONResponse(info.model_dump(mode="json"))

    async def _openapi(self, _: Request) -> Response:
        try:
            max_area_px = self._host.editor.info.max_areas_px[0]
        except EditError:  # not loaded: the document is true for every model
            max_area_px = None
        return JSONResponse(openapi_document(max_area_px))

    async def _metrics_text(self, _: Request) -> Response:
        return self._metrics.response()

    async def _livez(self, _: Request) -> Response:
        self._host.require_alive()
        return PlainTextResponse("alive\n")

    async def _readyz(self, _: Request) -> Response:
        engine = self._host.editor.steps.engine
        if isinstance(engine, RemoteEngine):
            engine.require_reachable()
        if isinstance(self._host.store, LocalStore):
            self._host.store.require_space()
        return PlainTextResponse(f"ready: {engine.info.model}\n")

    async def _ping(self, request: Request) -> Response:
        """Answer as Runpod's load balancer expects: 204 while loading, 200 when ready."""
        if self._host.state is State.STARTING:
            return Response(status_code=204)
        return await self._readyz(request)


def _name_route(scope: Scope) -> str:
    return scope["route"].path_format if "route" in scope else "none"


def _describe_span(scope: Scope, ids: Mapping[str, str]) -> None:
    """Name BentoML's span of a request by its route, without the query: a link has its signature there."""
    urls = {"http.url": scope["path"], "http.target": scope["path"], "url.query": ""}
    tracing.describe(f"{scope['method']} {_name_route(scope)}", **urls, **ids)


def _name_request(headers: Headers) -> dict[str, str]:
    """Return the ids of a request; a caller's id that is not plain is ignored."""
    job_id = uuid.uuid4().hex
    given = headers.get("x-request-id", "")
    return {"job_id": job_id, "request_id": given if _REQUEST_ID.fullmatch(given) else job_id}


async def answer_error(request: Request, raised: Exception) -> Response:
    """Return any failure in the contract's form; what nobody foresaw is logged and not described."""
    if isinstance(raised, HTTPException):
        raised = _translate(raised)
    if not isinstance(raised, EditError):
        event(_log, "http.failed", level=logging.ERROR, cause=raised)
        raised = InternalError()
    return error_response_at(request.url.path, raised, request.state.request_id)


def begin_hold(scope: Scope, request_id: str) -> Hold | None:
    """Have the request answered if this process dies, where a supervisor can."""
    hold: Hold | None = scope["state"].get(HOLD)
    if hold:
        response, last_event = answer_loss(scope["path"], request_id)
        is_chunked = scope["http_version"] == "1.1"
        hold.begin(response, write_last_chunks(last_event) if is_chunked else b"")
    return hold


def answer_loss(path: str, request_id: str) -> tuple[Response, str]:
    """Return what a request gets if this process dies, before its answer and in a stream."""
    error = ModelLost("the process that had the request died; send it again")
    response = error_response_at(path, error, request_id)
    response.headers["X-Request-ID"] = request_id
    return response, sse.format_event("error", json.loads(bytes(response.body)))


def error_response_at(path: str, error: EditError, request_id: str) -> Response:
    """Return the answer for `error` in the form of the route at `path`."""
    response = error_response(error, request_id=request_id)
    return openai.translate_error(error, response) if path.startswith(openai.PREFIX) else response


def error_response(error: EditError, *, request_id: str) -> JSONResponse:
    """Return the answer for `error`, with the headers that its status calls for."""
    headers: dict[str, str] = {}
    if isinstance(error, NotReady):
        headers["Retry-After"] = str(_NOT_READY_RETRY_AFTER_S)
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.details["allow"])
    if type(error) is Unauthorized:
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(error, request_id=request_id).model_dump(mode="json")
    return JSONResponse(body, status_code=error.status, headers=headers)


def _translate(raised: HTTPException) -> Exception:
    """Return Starlette's routing errors as the contract's."""
    headers: Mapping[str, str] = raised.headers or {}
    if "Allow" in headers:
        allow = sorted(headers["Allow"].split(", "))
        return MethodNotAllowed(f"use {' or '.join(allow)}", details={"allow": allow})
    if raised.status_code == RouteNotFound.status:
        return RouteNotFound("there is nothing here; /docs lists what there is")
    return raised
