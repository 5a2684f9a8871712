"""LoRA files in the key styles of the field's trainers, for any set of layers."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from retouch.engine.adapters.read import Shape

Pair = tuple[torch.Tensor, torch.Tensor]


def _dotted(prefix: str, down: str, up: str) -> Callable[[str], tuple[str, str, str]]:
    return lambda name: tuple(f"{prefix}{name}.{end}" for end in (down, up, "alpha"))  # type: ignore[return-value]


def _joined(prefix: str) -> Callable[[str], tuple[str, str, str]]:
    def keys(name: str) -> tuple[str, str, str]:
        stem = prefix + name.replace(".", "_")
        return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"

    return keys


DOWN_UP = ("lora_down.weight", "lora_up.weight")
A_B = ("lora_A.weight", "lora_B.weight")
STYLES: Mapping[str, Callable[[str], tuple[str, str, str]]] = {
    "lightning": _dotted("", *DOWN_UP),
    "diffusers": _dotted("transformer.", *A_B),
    "bare": _dotted("", *A_B),
    "diffsynth": _dotted("", "lora_A.default.weight", "lora_B.default.weight"),
    "ai-toolkit": _dotted("diffusion_model.", *A_B),
    "comfy": _dotted("diffusion_model.", *DOWN_UP),
    "kohya": _joined("lora_unet_"),
    "peft": _dotted("base_model.model.", *A_B),
    "old-diffusers": _dotted("transformer.", "lora.down.weight", "lora.up.weight"),
    "transformer-down-up": _dotted("transformer.", *DOWN_UP),
    "model-diffusion-model": _dotted("model.diffusion_model.", *A_B),
    "simpletuner": _joined("lycoris_"),
    "onetrainer": _joined("lora_transformer_"),
}


def draw_pairs(shapes: Mapping[str, Shape], *, rank: int = 4, seed: int = 1) -> dict[str, Pair]:
    """Draw `down` (rank, in) and `up` (out, rank) for each layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, inner, generator=generator) * 0.2,
            torch.randn(outer, rank, generator=generator) * 0.2,
        )
        for name, (outer, inner) in shapes.items()
    }


def build_tensors(
    pairs: Mapping[str, Pair], style: str, *, alpha: float | None = None
) -> dict[str, torch.Tensor]:
    """Name the pairs in a style, with or without alpha."""
    tensors: dict[str, torch.Tensor] = {}
    for name, (down, up) in pairs.items():
        down_key, up_key, alpha_key = STYLES[style](name)
        tensors |= {down_key: down, up_key: up}
        if alpha is not None:
            tensors[alpha_key] = torch.tensor(alpha)
    return tensors


def write(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Path:
    """Write a safetensors file and return its path."""
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    return path
