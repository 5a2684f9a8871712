"""Load a checkpoint into an engine. Importing this module imports no torch."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retouch.engine.checkpoint.files import (
    INDEX_FILE,
    WEIGHTED,
    compute_revision,
    fingerprint,
    list_weights,
    read_json,
    reason_of,
)
from retouch.engine.checkpoint.find import CheckpointSettings, find
from retouch.engine.checkpoint.read_ahead import reading_ahead
from retouch.engine.checkpoint.weights_file import find_weights_file
from retouch.engine.lean_imports import lean_imports
from retouch.engine.memory.plan import GIB, EditShape
from retouch.engine.memory.probe import find_device, measure_cpus, measure_free, measure_host
from retouch.engine.phase_clock import PhaseClock
from retouch.engine.preset import read_preset
from retouch.errors import ModelError
from retouch.logs import event
from retouch.schema import MAX_PROMPT_TOKENS

if TYPE_CHECKING:
    from retouch.engine.attention import Attention
    from retouch.engine.engine import QwenEngine

_log = logging.getLogger(__name__)
_TOKEN_AREA_PX = 16 * 16


def load(
    settings: CheckpointSettings, *, progress: Callable[[str], None] = lambda _: None
) -> "QwenEngine":
    """Load the checkpoint that `settings` name; report each part to `progress` before it is read.

    Raises:
        ModelError: the checkpoint is missing, incomplete or not of this family, or does not fit.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    model_id = settings.model_id
    clock = PhaseClock()
    disable_progress_bars()  # of the hub; `_silence_progress_bars` has the others
    try:
        folder = find(model_id, settings, progress=progress)
        files = find_files(settings, progress)
        clock.end("find_s")
        parts = [part for part in WEIGHTED if part not in files]
        weights = [path for part in parts for path in list_weights(folder / part)]
        with reading_ahead(sorted([*weights, *files.values()]), max_bytes=measure_host() // 2):
            import torch

            clock.end("torch_s")
            torch.set_num_threads(min(torch.get_num_threads(), measure_cpus()))
            return _load_engine(folder, files, settings, clock, progress)
    except Exception as error:  # the loaders raise many kinds; the log needs one line
        raise ModelError(f"the checkpoint {model_id} cannot be used: {reason_of(error)}") from error


def find_files(
    settings: CheckpointSettings, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Path]:
    """Return the files that hold a whole part's weights, by the part's name.

    Raises:
        ModelError: one cannot be found or downloaded, or is not the one that is pinned.
    """
    named = {
        "transformer": ("TRANSFORMER_FILE", settings.transformer_file),
        "text_encoder": ("TEXT_ENCODER_FILE", settings.text_encoder_file),
    }
    return {
        part: find_weights_file(text, setting=setting, token=settings.hf_token, progress=progress)
        for part, (setting, text) in named.items()
        if text
    }


def _load_engine(
    folder: Path,
    files: Mapping[str, Path],
    settings: CheckpointSettings,
    clock: PhaseClock,
    progress: Callable[[str], None],
) -> "QwenEngine":
    import torch

    device = find_device()
    memory = measure_free(settings.gpu_memory_gib, settings.host_memory_gib)
    preset = read_preset(folder)
    shape = EditShape(
        area_px=max(preset.area_px, settings.max_result_px),
        condition_area_px=min(preset.condition_area_px, 1024 * 1024),
    )
    dtype = getattr(torch, settings.dtype if device.type == "cuda" else "float32")
    with lean_imports(attention=settings.attention_backend):
        chosen = _choose_attention(folder, settings.attention_backend, device, dtype, shape)
        clock.end("attention_s")
        from retouch.engine import compilation, precision, transformer
        from retouch.engine.checkpoint import build
        from retouch.engine.checkpoint.adapters import load_all
        from retouch.engine.engine import QwenEngine

        _silence_progress_bars()
    clock.end("libraries_s")
    progress("processor")
    parts = build.read_parts(folder, files, family=settings.family)
    clock.end("processor_s")
    adapters = load_all(
        settings,
        preset,
        parts.configs["transformer"],
        read_json(folder / INDEX_FILE)["_class_name"],
        weight_factor=lambda layer: precision.residual_scale(f"transformer.{layer}.weight", dtype),
    )
    weights = build.load_weights(
        folder,
        parts.configs,
        dtype=dtype,
        device=device,
        shape=replace(shape, images=parts.template.max_images),
        memory=memory,
        packed=parts.packed,
        quantization=settings.quantization,
        adapters=adapters,
        progress=progress,
    )
    clock.end("weights_s")
    event(
        _log,
        "weights.placed",
        memory_plan=weights.plan.name,
        quantization=weights.plan.quantization,
        gpu_gib=round(weights.plan.peak_bytes / GIB, 1),
        host_gib=round(weights.plan.host_bytes / GIB, 1),
    )
    run_block: transformer.BlockCall = partial(transformer.run_block, attend=chosen.attend)
    code = None
    if not settings.adapters:  # each padded rank has code of its own, made in its first edit
        code = compilation.describe_code(
            parts.configs["transformer"],
            dtype=settings.dtype,
            attention=chosen.name,
            area_px=preset.area_px,
            condition_area_px=shape.condition_area_px,
        )
    compiled = compilation.decide(settings.compile, code)
    return QwenEngine(
        weights,
        processor=parts.processor,
        scheduler=parts.scheduler,
        template=parts.template,
        preset=preset,
        model=_public_name(settings.model_id),
        revision=describe_revision(folder, files, settings.family),
        run_block=compilation.compile_block(run_block) if compiled else run_block,
        attention=chosen.name,
        compiled=compiled,
        code=code,
        load_phases_s=clock.phases_s,
        adapters=adapters,
    )


def _choose_attention(
    folder: Path, name: str, device: Any, dtype: Any, shape: EditShape
) -> "Attention":
    """Choose at the size of one joint attention: tokens of the result, the condition and a prompt.

    Before the weights take the memory, and before diffusers' models import xformers.
    """
    from retouch.engine import attention

    config = read_json(folder / "transformer" / "config.json")
    tokens = (shape.area_px + shape.condition_area_px) // _TOKEN_AREA_PX + MAX_PROMPT_TOKENS
    size = attention.AttentionShape(
        tokens, config["num_attention_heads"], config["attention_head_dim"]
    )
    chosen, times_ms = attention.choose_attention(name, device=device, dtype=dtype, shape=size)
    event(_log, "attention.chosen", name=chosen.name, times_ms=times_ms)
    return chosen


def describe_revision(folder: Path, files: Mapping[str, Path], family: str) -> str:
    """Name what the weights are: the checkpoint's revision, each further file, and how it is read."""
    return "+".join(
        [compute_revision(folder), *map(fingerprint, files.values()), *([family] if family else [])]
    )


def _public_name(model_id: str) -> str:
    """Name a model in answers: a directory by its last part only, without its path."""
    folder = Path(model_id).expanduser()
    return folder.resolve().name if folder.is_dir() else model_id


def _silence_progress_bars() -> None:
    """Keep the libraries' progress bars out of a log of one JSON object a line."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
