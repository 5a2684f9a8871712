"""What to send instead of a wrong field."""

from collections.abc import Mapping
from difflib import get_close_matches

from pydantic import ValidationError

from retouch.errors import InvalidRequest
from retouch.schema.request import EditRequest

_MAX_FIELDS = 32
_MAX_NAME_CHARACTERS = 64
_OF_LORAS = "is not a field: name, or url and sha256, and scale are"
# Names that other services and tools give to the same thing.
_MEANT: Mapping[str, str] = {
    name: meant
    for meant, names in {
        "image_url": "image image_base64 image_b64 image_data data_uri data_url input_image init_image file url",
        "image_urls": "images input_images",
        "prompt": "text instruction instructions",
        "negative_prompt": "negative",
        "num_inference_steps": "steps num_steps inference_steps sampling_steps",
        "guidance_scale": "cfg cfg_scale true_cfg_scale guidance",
        "scheduler": "sampler sampler_name",
        "output_format": "format",
        "output_quality": "quality",
        "width and height": "size image_size resolution aspect_ratio",
        "mask_url": "mask mask_image",
        "strength": "denoise denoising_strength image_strength prompt_strength",
        "num_images": "n num_outputs num_images_per_prompt batch_size",
        "webhook": "webhook_url callback_url",
    }.items()
    for name in names.split()
}


def invalid_request(error: ValidationError) -> InvalidRequest:
    """Name every wrong field of a request and its fault, never the given value."""
    fields: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        if len(fields) == _MAX_FIELDS:
            break
        name = str(fault["loc"][0]) if fault["loc"] else "request"
        if len(fault["loc"]) > 1 and isinstance(at := fault["loc"][1], int):
            name += "".join([f"[{at}]", *(f".{inner}" for inner in fault["loc"][2:])])
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            text = advise(name) if len(fault["loc"]) == 1 else _OF_LORAS
            name = name[:_MAX_NAME_CHARACTERS].encode("ascii", "backslashreplace").decode()
        fields.setdefault(name, text)
    return InvalidRequest.for_fields(fields)


def advise(name: str) -> str:
    """Say what to send in place of a field that does not exist.

    >>> advise("steps"), advise("promt"), advise("tiles")
    ('is not a field: send num_inference_steps', 'is not a field: is prompt meant?', 'is not a field')
    >>> advise("n"), advise("data_uri")
    ('is not a field: send num_images', 'is not a field: send image_url')
    """
    if name == "input":
        return "is not a field here: send the fields in it by themselves"
    if meant := _MEANT.get(name.lower()):
        return f"is not a field: send {meant}"
    known = EditRequest.model_fields
    close = get_close_matches(name[:_MAX_NAME_CHARACTERS].lower(), known, n=1, cutoff=0.75)
    return f"is not a field: is {close[0]} meant?" if close else "is not a field"
