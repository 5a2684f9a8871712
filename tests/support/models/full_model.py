"""The full model's shapes with meaningless weights: enough to measure time and memory."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig

from retouch.engine.memory.flat_params import FlatParams
from retouch.engine.memory.weights import Weights
from retouch.engine.precision import residual_scale
from support.models.tiny import build_tiny_pipeline

TRANSFORMER = {"guidance_embeds": False}  # the other values are the class's defaults
SPREAD = 0.02
PATTERN = 1 << 22
SHARD_BYTES = 5_000_000_000


def make_configs() -> dict[str, Any]:
    """Build the configs of the full model's three parts, with the toy tokenizer's special tokens."""
    toy = build_tiny_pipeline().text_encoder.config
    return {
        "transformer": TRANSFORMER,
        "vae": {},
        "text_encoder": Qwen2_5_VLConfig(
            text_config={
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "vocab_size": 152064,
                "bos_token_id": toy.text_config.bos_token_id,
                "eos_token_id": toy.text_config.eos_token_id,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e6,
                    "mrope_section": [16, 24, 24],
                },
            },
            vision_config={
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
            },
            image_token_id=toy.image_token_id,
            video_token_id=toy.video_token_id,
            vision_start_token_id=toy.vision_start_token_id,
            vision_end_token_id=toy.vision_end_token_id,
        ),
    }


def make_pattern(dtype: torch.dtype, device: torch.device, *, factor: float = 1.0) -> torch.Tensor:
    """Draw the same values in every run; all weights of a kind are slices of them.

    They are values of bfloat16, as the published weights are, times `factor`: in float16 such weights
    have few bits set, and a GPU at its limit of power is faster for it.
    """
    generator = torch.Generator(device).manual_seed(0)
    pattern = torch.empty(PATTERN, device=device).normal_(0, SPREAD, generator=generator)
    return (pattern.bfloat16() * factor).to(dtype)


def fill(weights: Weights) -> None:
    """Fill every weight with its value, the same on every device; scaled in float16."""
    patterns: dict[tuple[torch.dtype, str, float], torch.Tensor] = {}

    def kind(path: str, tensor: torch.Tensor) -> tuple[torch.dtype, str, float]:
        return tensor.dtype, tensor.device.type, residual_scale(path, tensor.dtype)

    def fill_unit(unit: FlatParams) -> None:
        fill_packed(unit, weights.transformer.dtype, weights.device)
        for path, tensor in unit.tensors.items():
            if tensor.ndim == 1 and path.endswith("weight"):
                tensor.fill_(1)
            else:
                pattern = patterns[kind(path, tensor)]
                for piece in tensor.view(-1).split(PATTERN):
                    piece.copy_(pattern[: piece.numel()])

    for unit in weights.params:
        for path, tensor in unit.tensors.items():
            key = dtype, device, factor = kind(path, tensor)
            if key not in patterns:
                patterns[key] = make_pattern(dtype, weights.device, factor=factor).to(device)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(fill_unit, weights.params))
    if weights.device.type == "cuda":
        torch.cuda.synchronize()


def fill_packed(unit: FlatParams, dtype: torch.dtype, device: torch.device) -> None:
    """Pack the same values as `fill` for a transformer in `dtype`, on the GPU if there is one."""
    pattern = make_pattern(torch.bfloat16, device) if unit.packed else torch.empty(0)
    for path, packed in unit.packed.items():
        count = prod(packed.shape)
        values = pattern.repeat(-(-count // PATTERN))[:count].view(packed.shape)
        packed.write(values * residual_scale(path, dtype))


def write_checkpoint(
    folder: Path, modules: dict[str, Any], *, scheduler: Any, processor: Any
) -> int:
    """Write modules on `meta` as a checkpoint folder, their weights cut from the pattern; its bytes."""
    written = write_modules(folder, modules)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "QwenImageEditPipeline", "_diffusers_version": "0.42.1"})
    )
    scheduler.save_pretrained(folder / "scheduler")
    processor.tokenizer.save_pretrained(folder / "tokenizer")
    processor.tokenizer.save_pretrained(folder / "processor")
    processor.image_processor.save_pretrained(folder / "processor")
    return written


def write_modules(folder: Path, modules: dict[str, Any]) -> int:
    """Write the folders of modules on `meta`, as `write_checkpoint` does; their bytes."""
    written = 0
    for name, module in modules.items():
        part = folder / name
        part.mkdir(parents=True)
        weights = dict(module.named_parameters())
        if name == "text_encoder":
            module.config.save_pretrained(part)
            words = weights["model.language_model.embed_tokens.weight"]
            weights["lm_head.weight"] = words  # which the stock library loads too
        else:
            module.save_config(part)
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        written += _write_shards(part, stem, weights)
    return written


def count_wrong(weights: Weights) -> int:
    """Count the weights that differ from what `write_checkpoint` wrote (scaled in float16)."""
    pattern = make_pattern(torch.float32, torch.device("cpu")).to(weights.device)
    wrong = 0
    for path, tensor in weights.tensors().items():
        written = (pattern * residual_scale(path, tensor.dtype)).to(tensor.dtype)
        pieces = tensor.view(-1).split(PATTERN)
        wrong += any(not torch.equal(p.to(written.device), written[: len(p)]) for p in pieces)
    return wrong


def _write_shards(part: Path, stem: str, weights: dict[str, torch.nn.Parameter]) -> int:
    shards: list[dict[str, torch.nn.Parameter]] = [{}]
    size = 0
    for name, weight in weights.items():
        if size + weight.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = weight
        size += weight.nbytes
    dtype = next(iter(weights.values())).dtype
    pattern = make_pattern(dtype, torch.device("cpu")).view(torch.uint8).numpy()
    names = [f"{stem}-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]

    def write(name: str, shard: dict[str, torch.nn.Parameter]) -> int:
        header, offset = {}, 0
        for key, weight in shard.items():
            end = offset + weight.nbytes
            kind = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
            header[key] = {
                "dtype": kind,
                "shape": list(weight.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        text += b" " * (-len(text) % 8)
        with (part / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for weight in shard.values():
                for begin in range(0, weight.nbytes, pattern.nbytes):
                    file.write(memoryview(pattern[: weight.nbytes - begin]))
        return offset

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        written = sum(pool.map(write, names, shards))
    index = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (part / f"{stem}.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": written}, "weight_map": index})
    )
    return written
