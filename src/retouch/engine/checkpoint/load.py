"""Load a checkpoint into an engine. Importing this module imports no torch."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from retouch.engine.checkpoint.weights_file import find_files
from retouch.engine.compilation import BlockCode, compile_block, decide, find_place
from retouch.engine.lean_imports import lean_imports
from retouch.engine.memory.plan import GIB, EditShape, FreeMemory
from retouch.engine.memory.probe import find_device, measure_cpus, measure_free, measure_host
from retouch.engine.memory.shared_memory import sharing
from retouch.engine.phase_clock import PhaseClock
from retouch.engine.preset import PresetFile, read_preset
from retouch.errors import ModelError
from retouch.logs import event
from retouch.schema import MAX_PROMPT_TOKENS

if TYPE_CHECKING:
    from retouch.engine.adapters.loaded import LoadedAdapters
    from retouch.engine.attention import Attention
    from retouch.engine.block import BlockCall
    from retouch.engine.checkpoint.build import Parts
    from retouch.engine.engine import QwenEngine
    from retouch.engine.memory.weights import Weights
    from retouch.engine.team import Team

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
            with ExitStack() as undo, sharing(settings.processes):
                if settings.processes > 1:
                    settings = settings.share_host(measure_free().host_bytes / GIB)
                engine = _load_engine(folder, files, settings, clock, progress, undo)
                undo.pop_all()
                return engine
    except Exception as error:  # the loaders raise many kinds; the log needs one line
        raise ModelError(f"cannot load {model_id}: {reason_of(error)}") from error


class _Setup(NamedTuple):
    """What is known before the libraries are imported and the small files read."""

    device: Any
    dtype: Any
    memory: FreeMemory
    preset: PresetFile
    shape: EditShape
    attention: "Attention"


def _load_engine(
    folder: Path,
    files: Mapping[str, Path],
    settings: CheckpointSettings,
    clock: PhaseClock,
    progress: Callable[[str], None],
    undo: ExitStack,
) -> "QwenEngine":
    setup = _set_up(folder, settings, clock)
    team = _start_team(settings, setup, undo)
    from retouch.engine.checkpoint import build
    from retouch.engine.engine import QwenEngine

    progress("processor")
    parts = build.read_parts(folder, files, family=settings.family)
    clock.end("processor_s")
    adapters, weights = _load_weights(folder, parts, settings, setup, progress)
    clock.end("weights_s")
    run_block, code, compiled = _choose_code(settings, setup, parts, adapters, weights)
    if team:
        team.wait_until_loaded()
        if settings.splits_tokens:
            team.join(setup.device, is_resident=not weights.plan.slots)
    return QwenEngine(
        weights,
        processor=parts.processor,
        scheduler=parts.scheduler,
        template=parts.template,
        preset=setup.preset,
        model=_public_name(settings.model_id),
        revision=describe_revision(folder, files, settings.family),
        run_block=run_block,
        attention=setup.attention.name,
        compiled=compiled,
        code=code,
        load_phases_s=clock.phases_s,
        prompt_cache_bytes=settings.prompt_cache_bytes,
        adapters=adapters,
        team=team,
    )


def _start_team(settings: CheckpointSettings, setup: _Setup, undo: ExitStack) -> "Team | None":
    if settings.processes == 1:
        return None
    from retouch.engine.team import start_team

    alike = replace(
        settings,
        parallel="none",
        attention_backend=setup.attention.name,
        compile=settings.compile is True if settings.splits_tokens else settings.compile,
    )
    guidance = "guidance" in settings.parallel
    team = start_team(alike, setup.device, processes=settings.processes, guidance=guidance)
    undo.callback(team.close)
    return team


def _set_up(folder: Path, settings: CheckpointSettings, clock: PhaseClock) -> _Setup:
    """Measure the memory, choose the attention kernel, and import the libraries."""
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
        import retouch.engine.checkpoint.adapters
        import retouch.engine.checkpoint.build
        import retouch.engine.engine  # noqa: F401 - with most of what is imported later

        _silence_progress_bars()
    clock.end("libraries_s")
    return _Setup(device, dtype, memory, preset, shape, chosen)


def _load_weights(
    folder: Path,
    parts: "Parts",
    settings: CheckpointSettings,
    setup: _Setup,
    progress: Callable[[str], None],
) -> "tuple[LoadedAdapters, Weights]":
    from retouch.engine.checkpoint import build
    from retouch.engine.checkpoint.adapters import load_all
    from retouch.engine.precision import residual_scale

    adapters = load_all(
        settings,
        setup.preset,
        parts.configs["transformer"],
        read_json(folder / INDEX_FILE)["_class_name"],
        weight_factor=lambda layer: residual_scale(f"transformer.{layer}.weight", setup.dtype),
    )
    weights = build.load_weights(
        folder,
        parts.configs,
        dtype=setup.dtype,
        device=setup.device,
        shape=replace(setup.shape, images=parts.template.max_images),
        memory=setup.memory,
        packed=parts.packed,
        quantization=settings.quantization,
        adapters=adapters,
        progress=progress,
    )
    event(
        _log,
        "weights.placed",
        memory_plan=weights.plan.name,
        quantization=weights.plan.quantization,
        fp8_products=weights.multiplies_fp8,
        gpu_gib=round(weights.plan.peak_bytes / GIB, 1),
        host_gib=round(weights.plan.host_bytes / GIB, 1),
    )
    return adapters, weights


def _choose_code(
    settings: CheckpointSettings,
    setup: _Setup,
    parts: "Parts",
    adapters: "LoadedAdapters",
    weights: "Weights",
) -> "tuple[BlockCall, BlockCode | None, bool]":
    """Return what runs a block, its code where that can be cached, and whether it is compiled."""
    from retouch.engine.block import run_block

    run: BlockCall = partial(run_block, attend=setup.attention.attend)
    place, code = find_place(), None
    if place and not settings.splits_tokens:  # pragma: no cover - needs a GPU
        code = BlockCode(
            *place,
            config=json.dumps(dict(parts.configs["transformer"]), sort_keys=True),
            dtype=settings.dtype,
            attention=setup.attention.name,
            area_px=setup.preset.area_px,
            condition_area_px=setup.shape.condition_area_px,
            fp8=weights.multiplies_fp8,
            ranks=tuple(adapters.choices),
            term_layers=tuple(adapters.block_layers),
        )
    compiled = decide(settings.compile, code)
    return compile_block(run) if compiled else run, code, compiled


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
    measured: dict[str, Any] = {f"{kernel}_ms": round(ms, 3) for kernel, ms in times_ms.items()}
    event(_log, "attention.chosen", name=chosen.name, **measured)
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
