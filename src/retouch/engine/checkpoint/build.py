"""Build a checkpoint's modules without weights, plan their memory, and read the weights into place."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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

from retouch.engine import precision, text_encoder, tokenizer
from retouch.engine.checkpoint.entries import TensorEntry, read_headers
from retouch.engine.checkpoint.files import INDEX_FILE, naming, read_json
from retouch.engine.checkpoint.markers import require_markers
from retouch.engine.checkpoint.safetensors_reader import read_weights
from retouch.engine.memory.flat_params import MODULATION
from retouch.engine.memory.plan import RESIDENT, EditShape, FreeMemory, make_plan
from retouch.engine.memory.weights import Weights

Dtypes = dict[str, torch.dtype]


def load_weights(
    folder: Path,
    configs: dict[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device,
    shape: EditShape,
    memory: FreeMemory,
    progress: Callable[[str], None] = lambda _: None,
) -> Weights:
    """Load a checkpoint's weights, for modules of `configs`, to where the plan for `memory` and edits of `shape` puts them.

    Raises:
        ModelError: a weight is missing, a file is damaged, or memory is short.
    """
    modules = build_modules(configs, precision.choose_dtypes(dtype, device))
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


class Parts(NamedTuple):
    """What a checkpoint's small files hold."""

    template: text_encoder.PromptTemplate
    processor: tokenizer.Processor
    configs: dict[str, Any]
    scheduler: dict[str, Any]


def read_parts(folder: Path) -> Parts:
    """Read and check everything but the weights.

    Raises:
        ModelError: names the file that cannot be used.
    """
    template = text_encoder.describe_template(read_json(folder / INDEX_FILE)["_class_name"])
    with naming("processor/"):
        processor = tokenizer.load_processor(folder / "processor")
        text_encoder.require_template(template, processor.tokenizer)
    configs = read_configs(folder)
    require_markers(folder, processor.tokenizer, configs["text_encoder"])
    with naming("scheduler/scheduler_config.json"):
        scheduler = read_scheduler(folder / "scheduler")
    return Parts(template, processor, configs, scheduler)


def read_configs(folder: Path) -> dict[str, Any]:
    """Read the configurations of the three parts with weights.

    Raises:
        ModelError: names the file that cannot be used.
    """
    readers: dict[str, Any] = {
        "transformer": QwenImageTransformer2DModel.load_config,
        "vae": AutoencoderKLQwenImage.load_config,
        "text_encoder": partial(Qwen2_5_VLConfig.from_pretrained, local_files_only=True),
    }
    configs = {}
    for part, read in readers.items():
        with naming(f"{part}/config.json"):
            configs[part] = read(folder / part)
    return configs


def build_modules(configs: dict[str, Any], dtypes: Dtypes) -> dict[str, Any]:
    """Build the three parts with weights on `meta`: of their dtype, without memory.

    The text encoder has no output layer: its 1 GiB of weights is not used here.

    Raises:
        ModelError: names the configuration that cannot be used.
    """
    builders: dict[str, Any] = {
        "transformer": QwenImageTransformer2DModel.from_config,
        "vae": AutoencoderKLQwenImage.from_config,
        "text_encoder": Qwen2_5_VLForConditionalGeneration,
    }
    modules: dict[str, Any] = {}
    with init_empty_weights(include_buffers=False), no_init_weights():
        for part, build in builders.items():
            with naming(f"{part}/config.json"):
                modules[part] = build(configs[part])
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
                dtype = source.dtype if source else None
                if dtype and dtype.itemsize <= parameter.dtype.itemsize:
                    parameter.data = parameter.data.to(dtype)


def read_scheduler(folder: Path) -> dict[str, Any]:
    """Read the scheduler's configuration."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler
    config: dict[str, Any] = dict(scheduler.from_pretrained(folder).config)
    return config
