"""The OpenAPI 3.1 document, made from the contract's models and the tree of errors.

BentoML's own is 3.0.2, not valid, and silent about most answers.
"""

from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from retouch import __version__
from retouch.errors import error_classes
from retouch.schema import BOTH_SIDES_OR_NONE, EXAMPLE, EditRequest, EditResult, ErrorBody, Progress
from retouch.storage.local import LINK_QUERY

_JSON, _EVENTS, _TEXT = "application/json", "text/event-stream", "text/plain"
_CLIENT_CLOSED = 499


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {media_type: {"schema": schema}}


def _describe(status: int) -> str:
    codes = [cls.code for cls in error_classes() if cls.status == status]
    name = "Client Closed Request" if status == _CLIENT_CLOSED else HTTPStatus(status).phrase
    return f"{name}: {', '.join(codes)}"


def _errors(*statuses: int) -> dict[str, Any]:
    found = {cls.status for cls in error_classes()}
    assert found >= set(statuses), statuses  # noqa: S101 - a status nobody raises is a mistake here
    return {str(status): _ref_response(status) for status in statuses}


def _ref_response(status: int) -> dict[str, str]:
    return {"$ref": f"#/components/responses/Error{status}"}


def _error_responses() -> dict[str, Any]:
    statuses = sorted({cls.status for cls in error_classes()})
    return {
        f"Error{status}": {
            "description": _describe(status),
            "content": _content(_JSON, _ref("ErrorBody")),
        }
        for status in statuses
    }


def _get(summary: str, responses: dict[str, Any], *, name: str, is_open: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "operationId": name, "responses": responses}
    if is_open:
        operation["security"] = []
    return {"get": operation}


def _text(description: str) -> dict[str, Any]:
    return {"description": description, "content": _content(_TEXT, {"type": "string"})}


def _edit() -> dict[str, Any]:
    operation = {
        "summary": "Edit an image",
        "description": "Answers when the edit is done. With Accept: text/event-stream the answer is "
        "a stream of `progress` events (data: Progress) that ends with one `result` "
        "(data: EditResult) or `error` event (data: ErrorBody).",
        "operationId": "edit",
        "parameters": [
            {
                "name": "X-Request-ID",
                "in": "header",
                "description": "Names the request in the log and in the answer, if it is up to 128 "
                "of A-Za-z0-9._:- and else not.",
                "schema": {"type": "string"},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _ref("EditRequest"), "example": dict(EXAMPLE)}},
        },
        "responses": {
            "200": {
                "description": "The image is edited.",
                "headers": {"X-Request-ID": {"schema": {"type": "string"}}},
                "content": _content(_JSON, _ref("EditResult"))
                | _content(_EVENTS, {"type": "string"}),
            },
            **_errors(400, 401, 405, 413, 415, 429, 499, 500, 502, 503, 504),
        },
    }
    return {"post": operation}


def _file() -> dict[str, Any]:
    # Its type is the link's own; generators of clients know neither a range nor images.
    image = {"description": "The image."}
    path = _get(
        "A file of the local store, by its signed link",
        {"200": image, **_errors(403, 404, 503)},
        name="file",
        is_open=True,
    )
    where = {"key": "path"} | dict.fromkeys(LINK_QUERY, "query")
    path["get"]["parameters"] = [
        {
            "name": name,
            "in": place,
            "required": True,
            "description": "As the link has it.",
            "schema": {"type": "string"},
        }
        for name, place in where.items()
    ]
    return path


def _paths() -> dict[str, Any]:
    ready = {"200": _text("Ready."), **_errors(500, 503)}
    return {
        "/edit": _edit(),
        "/livez": _get(
            "Is the process alive?",
            {"200": _text("Alive."), **_errors(500)},
            name="livez",
            is_open=True,
        ),
        "/healthz": _get(
            "As /livez", {"200": _text("Alive."), **_errors(500)}, name="healthz", is_open=True
        ),
        "/readyz": _get("Is the model loaded and warm?", ready, name="readyz", is_open=True),
        "/ping": _get(
            "As /readyz, for Runpod's load balancer",
            {
                "200": _text("Ready."),
                "204": {"description": "Loading."},
                **_errors(500),
            },
            name="ping",
            is_open=True,
        ),
        "/metrics": _get(
            "Prometheus metrics",
            {"200": _text("Metrics."), **_errors(401)},
            name="metrics",
            is_open=False,
        ),
        "/files/{key}": _file(),
    }


def openapi_document() -> dict[str, Any]:
    """Return the document: OpenAPI 3.1, JSON Schema 2020-12."""
    _, schemas = models_json_schema(
        [
            (EditRequest, "validation"),
            (EditResult, "serialization"),
            (ErrorBody, "serialization"),
            (Progress, "serialization"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    schemas["$defs"]["EditRequest"] |= BOTH_SIDES_OR_NONE
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "retouch",
            "version": __version__,
            "description": "Edit an image at a URL by a text instruction.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"apiKey": []}, {}],
        "paths": _paths(),
        "components": {
            "schemas": schemas["$defs"],
            "responses": _error_responses(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }
