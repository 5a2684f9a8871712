"""An example of a request, and the rules that join its fields, as JSON Schema for OpenAPI."""

from collections.abc import Mapping

from pydantic import JsonValue

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

BOTH_SIDES_OR_NONE: Mapping[str, JsonValue] = {
    "if": {"properties": {"width": {"type": "integer"}}, "required": ["width"]},
    "then": {"properties": {"height": {"type": "integer"}}, "required": ["height"]},
    "else": {"properties": {"height": {"type": "null"}}},
}
"""The rule on width and height as JSON Schema, added to `EditRequest` in OpenAPI.

Not in the model: BentoML's build does not know `if`. Not `anyOf`: client generators would make several
models of it.
"""

ONE_OR_MANY_IMAGES: Mapping[str, JsonValue] = {
    "dependentSchemas": {
        "prompt": {
            "if": {"properties": {"image_urls": {"type": "array"}}, "required": ["image_urls"]},
            "then": {"properties": {"image_url": {"type": "null"}}},
            "else": {"properties": {"image_url": {"type": "string"}}, "required": ["image_url"]},
        }
    }
}
"""The rule on image_url and image_urls as JSON Schema, added in OpenAPI as `BOTH_SIDES_OR_NONE`.

It hangs on `prompt`, which every request has, because a schema takes one `if`.
"""
