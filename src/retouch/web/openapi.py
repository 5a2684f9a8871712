"""The OpenAPI 3.1 document, built from the schema's models and the tree of errors.

BentoML's own is 3.0.2, invalid, and does not describe most answers.
"""

from functools import cache
from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from retouch import __version__
from retouch.errors import error_classes
from retouch.schema import (
    EXAMPLE,
    FORM_RULES,
    REQUEST_RULES,
    EditRequest,
    EditResult,
    ErrorBody,
    ImageOptions,
    ImagesAnswer,
    ImagesError,
    Job,
    ModelList,
    Progress,
    ServiceInfo,
)
from retouch.storage.local import LINK_QUERY
from retouch.web.openapi_images import FILE, form_field, images_paths, images_requests
from retouch.web.openapi_jobs import ACCEPTED_EDIT, EDIT_HEADERS, jobs_paths, parameter

_CLIENT_CLOSED = 499  # nginx's; no RFC has it
_AS_BASE64 = {"properties": {"response_format": {"const": "b64_json"}}}
# As jobs answer; of properties beside a reference, generators of clients would make another type.
_BY_LINK = {"not": {**_AS_BASE64, "required": ["response_format"]}}
_SECURITY: list[dict[str, list[str]]] = [{"bearer": []}, {"apiKey": []}, {}]


def _ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _content(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {media_type: {"schema": schema}}


def _text(description: str) -> dict[str, Any]:
    return {"description": description, "content": _content("text/plain", {"type": "string"})}


def _errors(*statuses: int) -> dict[str, Any]:
    known = _error_responses()
    names = {str(status): f"Error{status}" for status in statuses}
    assert known.keys() >= set(names.values()), statuses  # noqa: S101 - no class has that status
    return {status: _ref("responses", name) for status, name in names.items()}


def _error_responses() -> dict[str, Any]:
    """Return a response for each status in the tree of errors, with the codes that have it."""
    codes: dict[int, list[str]] = {}
    for cls in error_classes():
        codes.setdefault(cls.status, []).append(cls.code)
    content = _content("application/json", _ref("schemas", "ErrorBody"))
    return {
        f"Error{status}": {
            "description": f"{_phrase(status)}: {', '.join(codes[status])}",
            "content": content,
        }
        for status in sorted(codes)
    }


def _phrase(status: int) -> str:
    return "Client Closed Request" if status == _CLIENT_CLOSED else HTTPStatus(status).phrase


def _get(name: str, summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Describe a GET that needs no API key, unless `more` says so."""
    responses = responses | _errors(403)
    about = {"summary": summary, "operationId": name, "responses": responses, "security": []}
    return {"get": about | more}


def _edit_body(rule: dict[str, Any]) -> dict[str, Any]:
    """Describe the body of an edit, which has to keep a further rule."""
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {**_ref("schemas", "EditRequest"), **rule},
                "example": dict(EXAMPLE),
            },
            **_content("multipart/form-data", {**_ref("schemas", "EditForm"), **rule}),
        },
    }


def _edit() -> dict[str, Any]:
    request_id = parameter(
        "X-Request-ID",
        "header",
        "Names the request in logs and in the answer; 1 to 128 of A-Za-z0-9._:- or it is ignored.",
        required=False,
    )
    success = {
        "description": "The image is edited.",
        "headers": {"X-Request-ID": {"schema": {"type": "string"}}},
        "content": _content("application/json", _ref("schemas", "EditResult")),
        # No content of its own: clients in TypeScript would get a union of both kinds for an answer.
        "x-event-stream": _ref("schemas", "EditEvent"),
    }
    return {
        "post": {
            "summary": "Edit an image",
            "description": "Answers when the edit is done. With Accept: text/event-stream the answer is "
            "a stream of server-sent events, EditEvent: progress events, then one result or error. An "
            "error before the first event has its HTTP status.",
            "operationId": "edit",
            "parameters": [request_id, *EDIT_HEADERS],
            "requestBody": _edit_body({}),
            "responses": {
                "200": success,
                "202": ACCEPTED_EDIT,
                **_errors(400, 401, 403, 405, 409, 413, 415, 429, 499, 500, 502, 503, 504),
            },
        }
    }


def _file() -> dict[str, Any]:
    places = {"key": "path"} | dict.fromkeys(LINK_QUERY, "query")
    return _get(
        "file",
        "A file of the local store, by its signed link",
        # Without a type, which is the link's own: generators of clients know neither a range nor images.
        {"200": {"description": "The image."}, **_errors(404, 503)},
        parameters=[
            parameter(name, place, "As the link has it.", required=True)
            for name, place in places.items()
        ],
    )


def _paths() -> dict[str, Any]:
    alive = {"200": _text("Alive."), **_errors(500)}
    ready = {"200": _text("Ready."), **_errors(500)}
    loading = {"204": {"description": "Loading."}}
    metrics = {"200": _text("Metrics."), **_errors(401)}
    loaded = _content("application/json", _ref("schemas", "ServiceInfo"))
    info = {"200": {"description": "The model.", "content": loaded}, **_errors(401, 500, 503)}
    return {
        "/edit": _edit(),
        **jobs_paths(_edit_body(_BY_LINK)),
        **images_paths(),
        "/info": _get("info", "What is loaded", info, security=_SECURITY),
        "/livez": _get("livez", "Is the process alive?", alive),
        "/healthz": _get("healthz", "As /livez", alive),
        "/readyz": _get("readyz", "Is the model loaded and warm?", ready | _errors(503)),
        "/ping": _get("ping", "As /readyz, for Runpod's load balancer", ready | loading),
        "/metrics": _get("metrics", "Prometheus metrics", metrics, security=_SECURITY),
        "/files/{key}": _file(),
    }


def _event(name: str, data: str) -> dict[str, Any]:
    text = {"title": "Event", "description": "Name of the event.", "examples": [name]}
    return {
        "type": "object",
        "title": f"{name.title()} event",
        "properties": {
            "event": {"type": "string", "const": name} | text,
            "data": _ref("schemas", data),
        },
        "required": ["event", "data"],
    }


def _event_schemas() -> dict[str, Any]:
    """Return the schemas of the stream: an event's name, and its data parsed from JSON."""
    data = {"progress": "Progress", "result": "EditResult", "error": "ErrorBody"}
    events = {f"{name.title()}Event": _event(name, kind) for name, kind in data.items()}
    any_of_them = {
        "title": "Edit event",
        "description": "One event of a stream: `event` is its name, `data` its data as JSON.",
        "oneOf": [_ref("schemas", name) for name in events],
        "discriminator": {
            "propertyName": "event",
            "mapping": {kind: f"#/components/schemas/{kind.title()}Event" for kind in data},
        },
    }
    return events | {"EditEvent": any_of_them}


def _word_defaults(schema: dict[str, Any]) -> None:
    """Say defaults in words: generators of clients make a field with a default required, or send it."""
    for field in schema["properties"].values():
        default = field.pop("default", None)
        if default is not None:
            field["description"] += f" Default: {default}."


def _edit_form(request: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a form: the fields of a request, and files in place of URLs."""
    image, mask = (
        FILE | {"description": f"{what}, in place of {name}_url. Its bytes say what it is."}
        for what, name in (("The image to edit", "image"), ("The mask", "mask"))
    )
    all_of = request["properties"]
    fields = {name: form_field(field) for name, field in all_of.items()}
    return {
        **request,
        "title": "Edit form",
        "description": "A file and the instruction to edit it by.",
        "properties": {"image": image, "mask": mask, **fields, "prompt": all_of["prompt"]},
        **FORM_RULES,
    }


def _schemas(max_area_px: int | None) -> dict[str, Any]:
    received = (EditRequest, ImageOptions)
    sent = (EditResult, ErrorBody, Progress, Job, ImagesAnswer, ImagesError, ModelList, ServiceInfo)
    _, document = models_json_schema(
        [
            *((model, "validation") for model in received),
            *((model, "serialization") for model in sent),
        ],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = document["$defs"]
    schemas["EditRequest"] |= REQUEST_RULES
    options = schemas.pop("ImageOptions")
    for schema in (schemas["EditRequest"], options):
        _word_defaults(schema)
    if max_area_px is not None:
        most = f" width x height is at most {max_area_px} pixels with the loaded model."
        for side in ("width", "height"):
            schemas["EditRequest"]["properties"][side]["description"] += most
    request = schemas["EditRequest"]
    schemas["EditForm"] = _edit_form(request)
    return schemas | _event_schemas() | images_requests(options, request)


@cache
def openapi_document(max_area_px: int | None = None) -> dict[str, Any]:
    """Return the document: OpenAPI 3.1, JSON Schema 2020-12. It is shared: do not change it.

    `max_area_px` is the largest result of the loaded model.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "retouch",
            "version": __version__,
            "description": "Edit an image at a URL by a text instruction.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": _SECURITY,
        "paths": _paths(),
        "components": {
            "schemas": _schemas(max_area_px),
            "responses": _error_responses(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }
