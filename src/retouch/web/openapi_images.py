"""OpenAPI of OpenAI's images API, as far as it is spoken here."""

from typing import Any

_STATUSES = (400, 401, 403, 405, 413, 415, 429, 499, 500, 502, 503, 504)
_FILE = {"type": "string", "format": "binary"}
_PROMPT = {"type": "string", "description": "What to change.", "examples": ["make it warmer"]}


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
        "description": "Takes the fields of POST /edit too, but for image_url. Other fields are "
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
            "200": {"description": "The image is edited.", "content": _json("ImagesAnswer")},
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


def images_requests(options: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of both kinds of request; `options` is that of `ImageOptions`."""
    image = {
        "type": "object",
        "title": "Image reference",
        "properties": {
            "image_url": {
                "type": "string",
                "description": "An http, https or data: URL.",
                "examples": ["https://example.com/image.jpg"],
            }
        },
        "required": ["image_url"],
    }
    images = {
        "type": "array",
        "items": {"$ref": "#/components/schemas/ImageReference"},
        "description": "The image to edit.",
        "examples": [[{"image_url": "https://example.com/image.jpg"}]],
    }
    file = _FILE | {"description": "The image to edit.", "examples": ["(a file)"]}
    return {
        "ImageReference": image,
        "ImagesRequest": _request("Images request", {"images": images}, options),
        "ImagesForm": _request("Images form", {"image": file}, options),
    }


def _request(title: str, image: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    properties = {**image, "prompt": _PROMPT, **options["properties"]}
    required = [*image, "prompt"]
    return {"type": "object", "title": title, "properties": properties, "required": required}
