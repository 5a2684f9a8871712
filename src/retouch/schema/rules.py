"""An example of a request, and the rules that join its fields, as JSON Schema for OpenAPI."""

from collections.abc import Mapping

from pydantic import JsonValue

from retouch.schema.fields import NOT_BLANK

# A whole request. Not in the model, because BentoML's schema ignores examples.
EXAMPLE: Mapping[str, object] = {
    "image_url": "https://example.com/image.jpg",
    "prompt": "make colors warmer and add gentle film grain",
    "negative_prompt": "low quality, artifacts",
    "seed": 424242,
    "num_inference_steps": 30,
    "guidance_scale": 7.5,
    "scheduler": "EulerAncestral",
    "output_format": "png",
    "output_quality": 95,
}

_INTEGER: JsonValue = {"type": "integer"}
_URL: JsonValue = {"type": "string", "pattern": NOT_BLANK}


def _give(**fields: JsonValue) -> dict[str, JsonValue]:
    """Return the schema of an object that has these fields."""
    return {"properties": fields, "required": [*fields]}


def _leave(**fields: JsonValue) -> dict[str, JsonValue]:
    """Return the schema of an object that has none of these fields, or null or a blank for it."""
    return {"properties": {name: {"not": field} for name, field in fields.items()}}


def _join(sources: JsonValue, mask: JsonValue) -> dict[str, JsonValue]:
    """Return the rules; `sources` is that on images, `mask` that a mask is given."""
    several: JsonValue = {"type": "array", "minItems": 2}
    below_1: JsonValue = {"type": "number", "exclusiveMaximum": 1}
    return {
        "if": _give(width=_INTEGER),
        "then": _give(height=_INTEGER),
        "else": _leave(height=_INTEGER),
        "dependentSchemas": {
            "prompt": sources,  # which every request has
            "mask_padding": {
                "if": _give(mask_padding=_INTEGER),
                "then": {"allOf": [mask, _leave(width=_INTEGER)]},
            },
            "size_from": {
                "if": _give(size_from={"const": "last"}, image_urls=several),
                "then": _leave(mask_url=_URL, strength=below_1),
            },
        },
    }


REQUEST_RULES: Mapping[str, JsonValue] = _join(
    {
        "if": _give(image_urls={"type": "array"}),
        "then": _leave(image_url=_URL),
        "else": _give(image_url=_URL),
    },
    _give(mask_url=_URL),
)
"""The rules that join fields as JSON Schema, added to `EditRequest` in OpenAPI.

Not in the model: BentoML's build does not know `if`. Not `anyOf`: client generators would make several
models of it.
"""

FORM_RULES: Mapping[str, JsonValue] = _join(
    {
        "oneOf": [_give(image={}), _give(image_url=_URL), _give(image_urls={"type": "array"})],
        "dependentSchemas": {"mask": _leave(mask_url=_URL)},
    },
    {"oneOf": [_give(mask={}), _give(mask_url=_URL)]},
)
"""The same for a form, which has files."""
