"""The scales of fp8 weights in one safetensors file, as ComfyUI, LightX2V and others write them.

Beside `X.weight` in F8_E4M3 stands `X.scale_weight` or `X.weight_scale`: one number, or one a row. A
file may also declare each layer's format, in a tensor `X.comfy_quant` or in its metadata
(Comfy-Org/ComfyUI: QUANTIZATION.md). Without any of these fp8 weights are plain numbers.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from retouch.engine.checkpoint.entries import TensorEntry
from retouch.engine.packing.encoding import Plain
from retouch.errors import ModelError

FP8 = "F8_E4M3"
FORMAT = "float8_e4m3fn"
FILE_MARK = "scaled_fp8"
"""An empty tensor that says that the file's fp8 weights are scaled."""
METADATA = "_quantization_metadata"
_MARK = ".comfy_quant"
_SCALES = (".weight_scale", ".scale_weight")
_UNUSED = (".input_scale", ".scale_input")
"""Scales of activations for fp8 products: results with 16-bit activations are more exact."""
_KNOWN = {"format", "full_precision_matrix_mult"}
_MATRIX = 2
_MAX_MARK_BYTES = 4096


def apply_scales(
    entries: Mapping[str, TensorEntry], declared: Mapping[str, Any]
) -> dict[str, TensorEntry]:
    """Return the weights with their scales; `declared` has the metadata's formats by layer.

    Raises:
        ModelError: names the first key that is missing, of a wrong shape or form, or not a number.
    """
    left = dict(entries)
    formats: dict[str, Any] = dict(declared)
    for name in [name for name in left if name.endswith(_MARK)]:
        formats[name.removesuffix(_MARK)] = _read_mark(left.pop(name))
    scaled = left.pop(FILE_MARK, None) is not None or bool(formats)
    for layer, form in formats.items():
        _require_format(layer, form, entries)
    scales = {}
    for name in [name for name, entry in left.items() if entry.kind == FP8]:
        layer = name.removesuffix(".weight")
        for suffix in _UNUSED:
            left.pop(layer + suffix, None)
        if found := next((key for suffix in _SCALES if (key := layer + suffix) in left), None):
            scales[layer] = _read_scales(left.pop(found), left[name])
    for name, entry in left.items():
        if entry.kind != FP8:
            continue
        layer = name.removesuffix(".weight")
        if (scaled or scales) and layer not in scales and len(entry.shape) >= _MATRIX:
            raise ModelError(f"{entry.file}: {layer}{_SCALES[0]} is missing")
        left[name] = replace(entry, encoding=Plain(torch.float8_e4m3fn), scales=scales.get(layer))
    return left


def _read_mark(entry: TensorEntry) -> Any:
    try:
        # One that is larger than any ends too early.
        return json.loads(_read_bytes(entry, max_bytes=_MAX_MARK_BYTES))
    except (ValueError, RecursionError):
        raise ModelError(f"{entry.file}: {entry.name} is not valid JSON") from None


def _require_format(layer: str, form: Any, entries: Mapping[str, TensorEntry]) -> None:
    weight = entries.get(f"{layer}.weight")
    file = next((entry.file for entry in entries.values()), "the file")
    if weight is None:
        raise ModelError(f"{file}: {layer}.weight is missing")
    if not isinstance(form, dict) or form.get("format") != FORMAT or form.keys() - _KNOWN:
        raise ModelError(f"{file}: {layer} has the format {json.dumps(form)}, not {FORMAT}")
    if weight.kind != FP8:
        raise ModelError(f"{file}: {layer}.weight is {weight.kind}, not {FORMAT} as declared")


def _read_scales(entry: TensorEntry, weight: TensorEntry) -> torch.Tensor:
    """Read the scales of `weight`: (1,), or (row,) of a matrix."""
    rows = weight.shape[0] if len(weight.shape) >= _MATRIX else 1
    if entry.shape not in {(), (1,), (1, 1), (rows,), (rows, 1)}:
        raise ModelError(f"{entry.file}: {entry.name} has the wrong shape {entry.shape}")
    dtype = entry.dtype or torch.float32
    scales = torch.frombuffer(bytearray(_read_bytes(entry)), dtype=dtype).float()
    if not bool((scales.isfinite() & (scales > 0)).all()):
        raise ModelError(f"{entry.file}: {entry.name} has a scale that is not a positive number")
    return scales


def _read_bytes(entry: TensorEntry, *, max_bytes: int | None = None) -> bytes:
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        return file.read(min(entry.size_bytes, max_bytes or entry.size_bytes))
