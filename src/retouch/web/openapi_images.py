"""OpenAPI of OpenAI's images API, as far as it is spoken here."""

from typing import Any

from retouch.schema import BLANK_PATTERN, MAX_IMAGES

_STATUSES = (400, 401, 403, 405, 413, 415, 429, 499, 500, 502, 503, 504)
_NULL = {"type": "null"}
_BLANK = {"type": "string", "pattern": BLANK_PATTERN}
_DIGITS = [
    {"type": "integer", "minimum": 0, "maximum": 1},
    {"type": "string", "pattern": rf"{BLANK_PATTERN}|^[01]$"},
]
FILE = {"type": "string", "format": "binary"}
"""A file in a form. It has no example: none can be written in JSON."""
_EVENTS = ["image_edit.partial_image", "image_edit.completed", "error"]
_EVENT = {  # as OpenAPI has events since 3.2: `data` is a text
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": _EVENTS},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def images_paths() -> dict[str, Any]:
    """Return the two paths."""
    failures = {
        str(status): {"description": "An error.", "content": _json("ImagesError")}
        for status in _STATUSES
    }
    edit = {
        "summary": "Edit an image, as OpenAI's clients ask for it",
        "description": "Takes the fields of POST /edit too, but for webhook. Other fields are "
        "ignored, and any model name is taken. A stream ends with image_edit.completed.",
        "operationId": "images_edit",
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": {"$ref": "#/components/schemas/ImagesForm"}},
                **_json("ImagesRequest"),
            },
        },
        "responses": {
            "200": {
                "description": "The image is edited.",
                "content": {**_json("ImagesAnswer"), "text/event-stream": {"schema": _EVENT}},
            },
            **failures,
        },
    }
    models = {
        "summary": "The loaded model",
        "operationId": "models",
        "responses": {
            "200": {"description": "A list of one.", "content": _json("ModelList")},
            **{status: failures[status] for status in ("401", "403", "500", "503")},
        },
    }
    return {"/v1/images/edits": {"post": edit}, "/v1/models": {"get": models}}


def images_requests(options: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of both kinds of request.

    `options` is that of `ImageOptions`, `request` that of `EditRequest`.
    """
    url = request["properties"]["image_url"]
    url = {**url["anyOf"][0], **_words(url), "description": "An http, https or data: URL."}
    images = {
        "type": "array",
        "items": {"$ref": "#/components/schemas/ImageReference"},
        "minItems": 1,
        "maxItems": MAX_IMAGES,
        "description": "The images to edit.",
        "examples": [[{"image_url": "https://example.com/image.jpg"}]],
    }
    file = FILE | {"description": "The image to edit."}
    prompt = {"prompt": request["properties"]["prompt"]}
    fields = options["properties"]
    unset = {name: _allow_null(field) for name, field in fields.items()}
    blank = {name: form_field(field) for name, field in fields.items()}
    return {
        "ImageReference": _require({"image_url": url}, {}),
        "ImagesRequest": _require({"images": images, **prompt}, unset),
        "ImagesForm": _require({"image": file, **prompt}, blank),
    }


def _require(needed: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object of fields that are `needed`, and `more`."""
    return {"type": "object", "properties": {**needed, **more}, "required": [*needed]}


def _allow_null(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field that may be null, as OpenAI's clients send what is not set."""
    return field if "anyOf" in field else {"anyOf": [field, _NULL], **_words(field)}


def form_field(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field in a form: it may be blank, a truth 0 or 1, and only a number `null`."""
    kinds = field.get("anyOf", [field])
    if kinds[0].get("type") == "boolean":
        return {"anyOf": [*kinds, *_DIGITS], **_words(field)}
    kinds = kinds[:1] if kinds[0].get("type") in ("string", "array") else kinds
    return {"anyOf": [*kinds, _BLANK], **_words(field)}


def _words(field: dict[str, Any]) -> dict[str, Any]:
    return {name: field[name] for name in ("description", "examples")}
