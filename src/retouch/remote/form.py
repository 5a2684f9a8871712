"""The request of an edit as a form: what OpenAI's clients send, and fields that only some servers know."""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL.Image import Image

from retouch.editing.ports import AdapterInfo, EditParams
from retouch.images.encode import encode

MASK_FIELDS = {"mask_feather": "256"}
"""The fields beside a mask for another retouch.

It would put the source back outside the mask, which is done here, feathered as the request says.
The widest feather leaves most of what the model made around the mask for that.
"""


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart body and its content type."""

    body: bytes
    content_type: str


def build_fields(params: EditParams, *, model: str = "") -> dict[str, str]:
    """Return the fields that every server takes or ignores.

    vLLM-Omni 0.30 and SGLang 0.5.23 call this family's guidance `true_cfg_scale`: their
    `guidance_scale` is that of distilled models. Both guide only where a negative prompt is sent.
    """
    fields = {
        "prompt": params.prompt,
        "negative_prompt": params.negative_prompt,
        "n": "1",
        "size": f"{params.width_px}x{params.height_px}",
        "response_format": "b64_json",
        "output_format": "png",
        "seed": str(params.seed),
        "num_inference_steps": str(params.steps),
        "guidance_scale": str(params.guidance_scale),
        "true_cfg_scale": str(params.guidance_scale),
    }
    return fields | ({"model": model} if model else {})


def build_own_fields(params: EditParams, adapters: Sequence[AdapterInfo]) -> dict[str, str]:
    """Return the fields that only another retouch knows."""
    scales = {lora.name: lora.scale for lora in params.loras}
    loras = [
        {"name": one.name, "scale": scales.get(one.name, 0.0)}
        for one in adapters
        if one.always or one.name in scales
    ]
    return {
        "scheduler": params.scheduler,
        "strength": str(params.strength),
        "profile": params.profile,
        **({"loras": json.dumps(loras)} if loras else {}),
    }


def encode_files(images: Sequence[Image], mask: Image | None = None) -> dict[str, list[bytes]]:
    """Return the files by field: `images` as `image`, or several as `image[]`, and the `mask`, all PNG."""
    named = {"image" if len(images) == 1 else "image[]": images, "mask": [mask] if mask else []}
    return {name: [encode(one, "png", quality=100) for one in ones] for name, ones in named.items()}


def build_form(fields: Mapping[str, str], files: Mapping[str, Sequence[bytes]]) -> Form:
    """Return the form with both."""
    boundary = secrets.token_hex(16)
    parts = [_write_head(boundary, name) + text.encode() for name, text in fields.items()]
    parts += [
        _write_head(boundary, name, 'filename="image.png"\r\nContent-Type: image/png') + body
        for name, bodies in files.items()
        for body in bodies
    ]
    body = b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
    return Form(body, f"multipart/form-data; boundary={boundary}")


def _write_head(boundary: str, name: str, *more: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    lines: Iterable[str] = (f"--{boundary}", "; ".join([disposition, *more]))
    return "\r\n".join(lines).encode() + b"\r\n\r\n"
