"""Build a checkpoint's modules without weights, plan their memory, and read the weights into place."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
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
from retouch.engine.adapters.loaded import LoadedAdapters
from retouch.engine.checkpoint import packed_file
from retouch.engine.checkpoint.entries import TensorEntry, read_headers
from retouch.engine.checkpoint.family import choose_family, family_of
from retouch.engine.checkpoint.files import INDEX_FILE, WEIGHTED, naming, read_json
from retouch.engine.checkpoint.mapped import map_modulation
from retouch.engine.checkpoint.markers import require_markers, require_patches
from retouch.engine.checkpoint.merging import Storage, choose_merged, merge_into, plan_with_adapters
from retouch.engine.checkpoint.safetensors_reader import read_weights
from retouch.engine.checkpoint.shared import place
from retouch.engine.fp8 import can_multiply_fp8
from retouch.engine.memory.encode import encode_as
from retouch.engine.memory.flat_params import MODULATION, flatten_pipeline
from retouch.engine.memory.plan import RESIDENT, EditShape, FreeMemory, Plan, Sizes, require_host
from retouch.engine.memory.quantization import Quantization, choose_quantization, list_choices
from retouch.engine.memory.weights import Weights
from retouch.engine.packing.encoding import Encoding
from retouch.errors import ModelError

Dtypes = dict[str, torch.dtype]
PackedParts = Mapping[str, Mapping[str, TensorEntry]]
"""The weights of parts that have a file of their own, by part and name."""


def load_weights(  # noqa: PLR0913 - what is loaded, and for what
    folder: Path,
    configs: dict[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device,
    shape: EditShape,
    memory: FreeMemory,
    packed: PackedParts = MappingProxyType({}),
    quantization: str = "none",
    adapters: LoadedAdapters | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Weights:
    """Load weights, for modules of `configs`, to where a plan for `memory` and edits of `shape` puts them.

    Where `memory` has a share, those on the host are in it, read by one of its processes while the
    others wait. Parts in `packed` have files of their own. Weights are packed while they are read, as
    `quantization` says: auto, none, or an encoding's name. Fixed `adapters` are merged into them before,
    unless that loses too much of one: the plan has room for the terms of the others.

    Raises:
        ModelError: a weight is missing, a file is damaged, or memory is short.
    """
    modules = build_modules(configs, precision.choose_dtypes(dtype, device))
    stored = list_entries(folder, packed)
    keep_modulation(modules["transformer"], stored)
    scale = partial(precision.residual_scale, dtype=dtype)
    filed = list_filed(packed, scale)
    mapped = map_modulation(modules["transformer"], stored) if device.type == "cuda" else {}
    adapters = adapters or LoadedAdapters()
    make_plan = partial(
        plan_with_adapters,
        adapters,
        partial(plan_memory, modules, quantization, filed, mapped=bool(mapped), device=device),
        shape,
        encode=partial(
            encode_as, filed=filed.encodings, fp8_products=can_multiply_fp8(device, dtype)
        ),
        choose=lambda code: choose_merged(adapters, stored, Storage(code, dtype, scale), device),
    )
    weights = place(
        modules, make_plan, memory, stored, adapters, dtype=dtype, device=device, mapped=mapped
    )
    _require_places(stored, {"transformer", *packed}, weights, configs["transformer"])
    _read(stored, weights, adapters, scale=scale, progress=progress)
    if dtype == torch.float16:  # pragma: no cover - a CPU runs float32
        precision.scale_norms(weights.transformer)
    weights.release()  # the memory that the readers converted in
    return weights


def _require_places(
    stored: Mapping[str, TensorEntry], parts: Collection[str], weights: Weights, config: Any
) -> None:
    """Check that the model has a place for every weight of these parts."""
    places = {view.path for params in weights.params for view in params.views}
    if config.get("zero_cond_t"):
        places.add(f"transformer.{packed_file.ZERO_CONDITION}")
    packed_file.require_used(stored, parts, places)


def _read(
    stored: Mapping[str, TensorEntry],
    weights: Weights,
    adapters: LoadedAdapters,
    *,
    scale: Callable[[str], float],
    progress: Callable[[str], None],
) -> None:
    """Read the weights into place, with the adapters that are merged."""
    weights.allocate()
    progress("weights")
    try:
        read = partial(read_weights, stored, device=weights.device, scale=scale, progress=progress)
        read(merge_into(weights.destinations(), adapters))
        with weights.filling_shared() as destinations:
            read(merge_into(destinations, adapters))
        weights.pin()
    except BaseException:
        weights.close()
        raise


def list_entries(folder: Path, packed: PackedParts) -> dict[str, TensorEntry]:
    """Return every weight in a checkpoint's files by its path; of parts in `packed`, those there.

    Raises:
        ModelError: a file is missing or damaged.
    """
    stored = read_headers(folder, [part for part in WEIGHTED if part not in packed])
    for part, entries in packed.items():
        stored |= {f"{part}.{name}": entry for name, entry in entries.items()}
    return stored


class Filed(NamedTuple):
    """What files have packed: the encoding by path, and the name of the format by part."""

    encodings: dict[str, Encoding]
    formats: dict[str, str]


def list_filed(packed: PackedParts, scale: Callable[[str], float]) -> Filed:
    """Return what memory can keep as its file has it, each weight times `scale(path)`."""
    encodings, formats = {}, {}
    for part, entries in packed.items():
        for name, entry in entries.items():
            path = f"{part}.{name}"
            if kept := entry.kept_as(scale(path)):
                encodings[path] = kept
        if described := packed_file.describe_format(entries):
            formats[part] = described
    return Filed(encodings, formats)


def plan_memory(
    modules: Mapping[str, Any],
    quantization: str,
    filed: Filed,
    *,
    mapped: bool,
    device: torch.device,
    shape: EditShape,
    memory: FreeMemory,
) -> tuple[Quantization, Plan]:
    """Choose how the weights of `modules` are stored, and where. On a CPU `auto` packs nothing itself.

    With `mapped` the modulation is read from its files where it does not stay on the GPU.

    Raises:
        ModelError: memory is short.
    """

    def sizes(choice: Quantization) -> Sizes:
        params = flatten_pipeline(**modules, encode=encode_as(choice, filed.encodings))
        return replace(params.sizes, modulation_mapped=mapped)

    if device.type != "cuda":
        choice = list_choices(quantization, filed.formats)[0]
        require_host(sizes(choice), memory)
        return choice, replace(RESIDENT, quantization=choice.name)
    return choose_quantization(  # pragma: no cover - needs a GPU
        quantization, sizes, shape, memory, filed.formats
    )


class Parts(NamedTuple):
    """What a checkpoint's small files hold, and the headers of files with a whole part's weights."""

    template: text_encoder.PromptTemplate
    processor: tokenizer.Processor
    configs: dict[str, Any]
    scheduler: dict[str, Any]
    packed: PackedParts


def read_parts(
    folder: Path, files: Mapping[str, Path] = MappingProxyType({}), *, family: str = ""
) -> Parts:
    """Read and check everything but the weights; `files` are those of a whole part, by its name.

    Raises:
        ModelError: names the file that cannot be used.
    """
    pipeline = read_json(folder / INDEX_FILE)["_class_name"]
    template = text_encoder.describe_template(pipeline)
    with naming("processor/"):
        processor = tokenizer.load_processor(folder / "processor")
        text_encoder.require_template(template, processor.tokenizer)
    configs = read_configs(folder)
    for part in sorted(configs.keys() - files.keys()):
        if read_json(folder / part / "config.json").get("quantization_config"):
            raise ModelError(f"{part}/ is quantized: name a checkpoint in 16 or 32 bits")
    require_markers(folder, processor.tokenizer, configs["text_encoder"])
    require_patches(processor.image_processor, configs["text_encoder"].vision_config)
    with naming("scheduler/scheduler_config.json"):
        scheduler = read_scheduler(folder / "scheduler")
    packed = {}
    if path := files.get("transformer"):
        found = packed_file.read_transformer(path)
        base = family_of(pipeline, configs["transformer"])
        chosen = choose_family(base=base, named=family, is_2511=found.is_2511)
        configs["transformer"] = {**configs["transformer"], "zero_cond_t": chosen == "2511"}
        packed["transformer"] = found.entries
    if path := files.get("text_encoder"):
        packed["text_encoder"] = packed_file.read_text_encoder(path)
    return Parts(template, processor, configs, scheduler, packed)


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
    return dict(scheduler.from_pretrained(folder).config)
