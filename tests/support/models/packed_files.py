"""Files with a transformer's weights as they are found in the field, written from a state dict.

Each layout rounds the weights; `rounded` is what a reader must find in the file.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from support.models.gguf_blocks import make_blocks, pack_q6_k

Kind = gguf.GGMLQuantizationType
Weights = dict[str, torch.Tensor]
FP8 = torch.float8_e4m3fn
MARKER = "__index_timestep_zero__"


class Packed(NamedTuple):
    """Tensors and metadata of a safetensors file, and the weights that they stand for."""

    tensors: Weights
    metadata: dict[str, str] | None
    rounded: Weights

    def save(self, path: Path) -> Path:
        """Write the file."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, path, metadata=self.metadata)
        return path


def is_matrix(name: str, weight: torch.Tensor) -> bool:
    """Whether a layout packs the weight: matrices of blocks and layers; the rest stays in 16 bits."""
    return (
        weight.ndim == 2 and name.endswith(".weight") and ("blocks." in name or "layers." in name)
    )


def in_16_bits(weights: Weights, *, prefix: str = "") -> Packed:
    """Return bfloat16 weights with names after `prefix`."""
    rounded = {name: weight.bfloat16() for name, weight in weights.items()}
    return Packed({prefix + name: one for name, one in rounded.items()}, None, rounded)


def in_plain_fp8(weights: Weights) -> Packed:
    """Return every weight cast to fp8, as Comfy-Org's `fp8_e4m3fn` files."""
    tensors = {name: weight.to(FP8) for name, weight in weights.items()}
    return Packed(tensors, None, {name: one.float() for name, one in tensors.items()})


def _scaled(
    weights: Weights, suffix: str, shape: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[Weights, Weights]:
    tensors, rounded = {}, {}
    for name, weight in weights.items():
        if not is_matrix(name, weight):
            tensors[name] = rounded[name] = weight.bfloat16()
            continue
        scale = shape(weight)
        tensors[name] = (weight / scale).to(FP8)
        tensors[name.removesuffix("weight") + suffix] = scale
        rounded[name] = tensors[name].float() * scale
    return tensors, rounded


def _one(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().max() / 448


def in_old_scaled_fp8(weights: Weights) -> Packed:
    """Return ComfyUI's first layout: `scale_weight`, `scale_input` and the mark `scaled_fp8`."""
    tensors, rounded = _scaled(weights, "scale_weight", lambda w: _one(w).reshape(1))
    for name in list(tensors):
        if name.endswith("scale_weight"):
            tensors[name.replace("scale_weight", "scale_input")] = torch.tensor([1.5])
    tensors["scaled_fp8"] = torch.zeros(0, dtype=FP8)
    return Packed(tensors, None, rounded)


def in_marked_fp8(weights: Weights) -> Packed:
    """Return ComfyUI's mixed layout: `weight_scale`, `input_scale` and `comfy_quant` a layer."""
    tensors, rounded = _scaled(weights, "weight_scale", _one)
    mark = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    for name in list(tensors):
        if name.endswith("weight_scale"):
            layer = name.removesuffix("weight_scale")
            tensors[layer + "comfy_quant"] = torch.tensor(list(json.dumps(mark).encode())).byte()
            tensors[layer + "input_scale"] = torch.tensor(0.5)
    return Packed(tensors, None, rounded)


def in_declared_fp8(weights: Weights) -> Packed:
    """Return the layout with the formats in the file's metadata."""
    tensors, rounded = _scaled(weights, "weight_scale", _one)
    layers = {
        name.removesuffix(".weight_scale"): {"format": "float8_e4m3fn"}
        for name in tensors
        if name.endswith(".weight_scale")
    }
    declared = json.dumps({"format_version": "1.0", "layers": layers})
    return Packed(tensors, {"_quantization_metadata": declared}, rounded)


def in_row_scaled_fp8(weights: Weights) -> Packed:
    """Return LightX2V's layout: a scale for each row, and nothing else."""
    tensors, rounded = _scaled(
        weights, "weight_scale", lambda weight: weight.abs().amax(1, keepdim=True) / 448
    )
    return Packed(tensors, None, rounded)


def in_whole_pipeline(weights: Weights) -> Packed:
    """Return a file with all parts of a pipeline, as ComfyUI saves checkpoints."""
    inner = in_marked_fp8(weights)
    tensors = {f"model.diffusion_model.{name}": one for name, one in inner.tensors.items()}
    tensors["vae.conv1.weight"] = torch.ones(3, dtype=torch.int8)
    tensors["text_encoders.qwen25_7b.transformer.scaled_fp8"] = torch.zeros(0)
    return Packed(tensors, None, inner.rounded)


SAFETENSORS: Mapping[str, Callable[[Weights], Packed]] = {
    "16 bits": in_16_bits,
    "prefix": lambda weights: in_16_bits(weights, prefix="model.diffusion_model."),
    "short prefix": lambda weights: in_16_bits(weights, prefix="diffusion_model."),
    "plain fp8": in_plain_fp8,
    "scale_weight": in_old_scaled_fp8,
    "comfy_quant": in_marked_fp8,
    "metadata": in_declared_fp8,
    "a scale a row": in_row_scaled_fp8,
    "whole pipeline": in_whole_pipeline,
}
"""Every layout by name."""


def save_gguf(
    weights: Weights,
    path: Path,
    kind: Kind | Callable[[str], Kind],
    *,
    architecture: str = "qwen_image",
    **metadata: Any,
) -> Weights:
    """Write weights as GGUF, the blocks' matrices in blocks of `kind`; return the rounded weights.

    The kind may depend on the name, as in a file of Q4_K_M. Of types that the gguf package cannot write, the blocks are random.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    rounded = {}
    for name, weight in weights.items():
        values: np.ndarray = weight.float().numpy()
        if is_matrix(name, weight):
            own = kind(name) if callable(kind) else kind
            packed = _quantize(values, own)
            writer.add_tensor(name, packed, raw_dtype=own)
            values = gguf.quants.dequantize(packed, own)
        else:
            writer.add_tensor(name, values)
        rounded[name] = torch.from_numpy(values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return rounded


def _quantize(values: np.ndarray, kind: Kind) -> np.ndarray:
    if kind == Kind.Q6_K:
        return pack_q6_k(values)
    try:
        packed: np.ndarray = gguf.quants.quantize(values, kind)
    except NotImplementedError:
        packed = make_blocks(kind, values.shape)
    return packed
