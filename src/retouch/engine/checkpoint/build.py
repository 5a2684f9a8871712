"""Build a checkpoint's modules without weights, plan their memory, and read the weights into place."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.initialization import no_init_weights

from retouch.engine import precision
from retouch.engine.checkpoint.safetensors_reader import TensorEntry, read_headers, read_weights
from retouch.engine.memory.flat_params import MODULATION
from retouch.engine.memory.plan import RESIDENT, EditShape, FreeMemory, make_plan
from retouch.engine.memory.weights import Weights

Dtypes = dict[str, torch.dtype]


def load_weights(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    shape: EditShape,
    memory: FreeMemory,
    progress: Callable[[str], None] = lambda _: None,
) -> Weights:
    """Load a checkpoint's weights to where the plan for `memory` and edits of `shape` puts them.

    Raises:
        ModelError: a weight is missing, a file is damaged, or memory is short.
    """
    modules = build_modules(read_configs(folder), precision.choose_dtypes(dtype, device))
    stored = read_headers(folder)
    keep_modulation(modules["transformer"], stored)
    weights = Weights(**modules, plan=RESIDENT, device=device)
    if device.type == "cuda":  # pragma: no cover - needs a GPU
        weights.plan = make_plan(weights.params.sizes, shape, memory)
    weights.allocate()
    progress("weights")
    try:
        read_weights(
            stored,
            weights.tensors(),
            scale=partial(precision.residual_scale, dtype=dtype),
            progress=progress,
        )
        weights.pin()
    except BaseException:
        weights.close()
        raise
    if dtype == torch.float16:  # pragma: no cover - a CPU runs float32
        precision.scale_norms(weights.transformer)
    weights.release()  # the memory that the readers converted in
    return weights


def read_configs(folder: Path) -> dict[str, Any]:
    """Read the configurations of the three parts with weights."""
    transformer: Any = QwenImageTransformer2DModel
    vae: Any = AutoencoderKLQwenImage
    return {
        "transformer": transformer.load_config(folder / "transformer"),
        "vae": vae.load_config(folder / "vae"),
        "text_encoder": Qwen2_5_VLConfig.from_pretrained(
            folder / "text_encoder", local_files_only=True
        ),
    }


def build_modules(configs: dict[str, Any], dtypes: Dtypes) -> dict[str, Any]:
    """Build the three parts with weights on `meta`: of their dtype, without memory.

    The text encoder has no output layer: its 1 GiB of weights is not used here.
    """
    transformer: Any = QwenImageTransformer2DModel
    vae: Any = AutoencoderKLQwenImage
    with init_empty_weights(include_buffers=False), no_init_weights():
        modules = {
            "transformer": transformer.from_config(configs["transformer"]),
            "vae": vae.from_config(configs["vae"]),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(configs["text_encoder"]),
        }
    modules["text_encoder"].lm_head = nn.Identity()
    for name, module in modules.items():
        module.eval()
        for parameter in module.parameters():  # not buffers: rotary frequencies need float32
            parameter.data = parameter.data.to(dtypes[name])
            parameter.requires_grad_(False)
    return modules


def keep_modulation(transformer: Any, stored: Mapping[str, TensorEntry]) -> None:
    """Give the modulation the dtype that is `stored`, unless that is larger: it is converted in use.

    The host then reads it without converting, and the GPU converts it as fast as it arrives.
    """
    for number, block in enumerate(transformer.transformer_blocks):
        for head in MODULATION:
            for name, parameter in getattr(block, head).named_parameters():
                source = stored.get(f"transformer.transformer_blocks.{number}.{head}.{name}")
                if source and source.dtype.itemsize <= parameter.dtype.itemsize:
                    parameter.data = parameter.data.to(source.dtype)


def read_scheduler(folder: Path) -> dict[str, Any]:
    """Read the scheduler's configuration."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    config: dict[str, Any] = dict(scheduler.from_pretrained(folder).config)
    return config
