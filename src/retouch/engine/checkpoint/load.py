"""Find a checkpoint, check that it is whole, and load it into an engine.

A folder is taken as it is; a hub id comes from the local cache where it is there in full, else from
the hub. Importing this module is cheap: torch and the loaders come with `load`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retouch.engine import attention, compilation, cuda_libraries, transformer
from retouch.engine.checkpoint import build
from retouch.engine.checkpoint.files import (
    INDEX_FILE,
    compute_revision,
    read_json,
)
from retouch.engine.checkpoint.find import CheckpointSettings, find
from retouch.engine.memory.plan import EditShape
from retouch.engine.memory.probe import FreeMemory, measure_cpus, measure_memory
from retouch.engine.preset import PRESET_FILE, PresetFile, read_preset
from retouch.errors import ModelError

if TYPE_CHECKING:
    from retouch.engine.engine import QwenEngine


def load(
    settings: CheckpointSettings, *, progress: Callable[[str], None] = lambda _: None
) -> "QwenEngine":
    """Load what `settings` name, and tell `progress` each part before it is read.

    Raises:
        ModelError: the checkpoint is not there, is not whole, or is none of this family.
    """
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), measure_cpus()))
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    memory = measure_memory(device, settings.gpu_memory_gib)
    model_id = settings.model_id
    _silence_progress_bars()
    try:
        folder = find(model_id, settings, progress=progress)
        return _load_engine(folder, _name(model_id), settings, memory, device, progress)
    except ModelError as error:
        raise ModelError(f"the checkpoint {model_id} cannot be used: {error.message}") from error
    except Exception as error:  # the loaders raise what they like; a start needs one line
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"the checkpoint {model_id} cannot be used: {reason}") from error


def _name(model_id: str) -> str:
    """Name a model for the public: of a folder only the last part, not where it lies."""
    folder = Path(model_id).expanduser()
    return folder.resolve().name if folder.is_dir() else model_id


def _load_engine(
    folder: Path,
    name: str,
    settings: CheckpointSettings,
    memory: FreeMemory,
    device: Any,
    progress: Callable[[str], None],
) -> "QwenEngine":
    """Load every part, and refuse what the loaders would make up: weights and tokens."""
    import torch

    if settings.attention_backend == "xformers":
        cuda_libraries.open_cuda_12()
    from retouch.engine.engine import QwenEngine
    from retouch.engine.tokenizer import load_processor

    attention.require_backend(settings.attention_backend, device)
    dtype = getattr(torch, settings.dtype if device.type == "cuda" else "float32")
    preset = read_preset(folder)
    picture = EditShape(
        area_px=preset.area_px, condition_area_px=min(preset.condition_area_px, 1024 * 1024)
    )
    weights = build.load_weights(
        folder, dtype=dtype, device=device, picture=picture, memory=memory, progress=progress
    )
    if settings.attention_backend != "native":
        weights.transformer.set_attention_backend(settings.attention_backend)
    progress("processor")
    return QwenEngine(
        weights,
        processor=load_processor(folder / "processor"),
        scheduler=build.read_scheduler(folder / "scheduler"),
        pipeline=read_json(folder / INDEX_FILE)["_class_name"],
        preset=preset,
        model=name,
        revision=compute_revision(folder),
        run_block=compilation.compile_block(compilation.find_code_cache())
        if settings.compile
        else transformer.run_block,
    )


def save(pipe: Any, folder: Path, *, preset: PresetFile) -> None:
    """Save a pipeline as a checkpoint folder that `load` and the stock library read."""
    pipe.save_pretrained(folder)
    index = folder / INDEX_FILE
    parts = json.loads(index.read_bytes()) | {"processor": ["transformers", "Qwen2VLProcessor"]}
    index.write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
    text = preset.model_dump_json(indent=2, exclude_defaults=True)
    (folder / PRESET_FILE).write_text(text + "\n", encoding="utf-8")


def _silence_progress_bars() -> None:
    """Keep the libraries' bars off a log that is one JSON object a line."""
    import diffusers
    import transformers
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
