"""Find a checkpoint, check that it is whole, and load it into an engine.

A folder is taken as it is; a hub id comes from the local cache where it is there in full, else from
the hub. Importing this module is cheap: torch and the loaders come with `load`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retouch.engine import libraries
from retouch.engine.downloads import make_line_bar
from retouch.engine.folder import (
    INDEX_FILE,
    PARTS,
    WEIGHTED,
    compute_revision,
    read_json,
    require_whole,
)
from retouch.engine.plan import FULL, GIB, Memory, Picture, make_plan, measure_cpus, measure_memory
from retouch.errors import ModelError

if TYPE_CHECKING:
    from retouch.engine.pipeline import QwenEngine

FULL_MODEL = "Qwen/Qwen-Image-Edit"
LEAST_GIB = 7
"""Smaller cards could, but 54 GiB are not to be downloaded unasked for an edit of minutes."""
DEMO_FOLDER = Path(__file__).parent / "demo" / "checkpoint"
PRESET_FILE = "retouch_preset.json"


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Which weights, in which precision, where and how. An empty text leaves the choice to `load`.

    `dtype` is float16, bfloat16 or float32; a CPU always runs float32. `device` is cuda or cpu.
    `cache_dir` is a folder in the hub library's layout. `gpu_memory_gib` is what the engine may
    take of the GPU, 0 all that is free.
    """

    model_id: str = ""
    revision: str = ""
    dtype: str = "float16"
    device: str = ""
    cache_dir: str = ""
    gpu_memory_gib: float = 0.0
    attention_backend: str = "native"
    compile: bool = False
    hf_token: str = field(default="", repr=False)


class PresetFile(BaseModel):
    """`retouch_preset.json`: what a checkpoint wants that differs from the full model.

    `condition_as_result` gives the condition the size of the result in place of `condition_area_px`,
    for weights that compare the two place by place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    steps: int = Field(default=30, ge=1, le=50)
    guidance_scale: float = Field(default=4.0, ge=1, le=20)
    area_px: int = Field(default=1024 * 1024, ge=64 * 64)
    condition_area_px: int = Field(default=1024 * 1024, ge=64 * 64)
    condition_as_result: bool = False
    guided: bool = True
    notes: tuple[str, ...] = ()


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
    model_id = choose_model(settings.model_id, memory, progress=progress)
    _silence_progress_bars()
    try:
        folder = find(model_id, settings, progress=progress)
        return _load_engine(folder, _name(model_id), settings, memory, device, progress)
    except ModelError as error:
        raise ModelError(f"the checkpoint {model_id} cannot be used: {error.message}") from error
    except Exception as error:  # the loaders raise what they like; a start needs one line
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"the checkpoint {model_id} cannot be used: {reason}") from error


def choose_model(
    model_id: str, memory: Memory, *, progress: Callable[[str], None] = lambda _: None
) -> str:
    """Return the id asked for, else the full model's where it fits, else the demo's folder.

    >>> choose_model("", Memory(16 << 30, 64 << 30))
    'Qwen/Qwen-Image-Edit'
    """
    if model_id:
        return model_id
    reason = ""
    if memory.gpu_bytes < LEAST_GIB * GIB:
        reason = f"it is taken unasked from {LEAST_GIB} GiB of free GPU memory on"
    try:
        make_plan(FULL, Picture(), memory)
    except ModelError as error:
        reason = error.message
    if not reason:
        return FULL_MODEL
    progress(
        f"the demo model, because the full one does not fit: {reason}; "
        f"MODEL_ID={FULL_MODEL} takes it all the same"
    )
    return str(DEMO_FOLDER)


def find(
    model_id: str,
    settings: CheckpointSettings,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Return the folder of `model_id`, downloaded if need be, and whole as far as its files tell.

    Raises:
        ModelError: there is none of this name, or a file of it is missing or cut short.
    """
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if settings.revision:
            raise ModelError("a folder has no revision to choose from: leave MODEL_REVISION unset")
        require_whole(folder)
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {
        "revision": settings.revision or None,
        "cache_dir": settings.cache_dir or None,
        "token": settings.hf_token or None,
        "allow_patterns": [
            INDEX_FILE,
            PRESET_FILE,
            *(f"{part}/*.{ending}" for part in PARTS for ending in ("json", "txt", "jinja")),
            *(f"{part}/*.safetensors" for part in WEIGHTED),
        ],
        "ignore_patterns": ["*/*.*.safetensors"],  # variants in another precision
    }
    try:
        folder = Path(snapshot_download(model_id, local_files_only=True, **wanted))
        require_whole(folder)
    except HFValidationError:
        raise ModelError("there is no such folder, and it is no hub id") from None
    except (FileNotFoundError, ModelError):  # not there, or a download that was broken off
        bars = make_line_bar(progress)
        try:
            folder = Path(snapshot_download(model_id, tqdm_class=bars, **wanted))
        except LocalEntryNotFoundError as error:
            raise ModelError(
                "it is not here whole, and the hub cannot be asked: mend the network, set HF_ENDPOINT to "
                "a mirror, or MODEL_ID to a folder"
            ) from error
        require_whole(folder)
    return folder


def _read_preset(folder: Path) -> PresetFile:
    path = folder / PRESET_FILE
    if not path.exists():
        return PresetFile()
    try:
        return PresetFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ModelError(
            f"{PRESET_FILE}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        ) from error


def _name(model_id: str) -> str:
    """Name a model for the public: of a folder only the last part, not where it lies."""
    folder = Path(model_id).expanduser()
    return folder.resolve().name if folder.is_dir() else model_id


def _load_engine(
    folder: Path,
    name: str,
    settings: CheckpointSettings,
    memory: Memory,
    device: Any,
    progress: Callable[[str], None],
) -> "QwenEngine":
    """Load every part, and refuse what the loaders would make up: weights and tokens."""
    import torch

    if settings.attention_backend == "xformers":
        libraries.open_cuda_12()
    from retouch.engine import denoise, loading, speed
    from retouch.engine.conditioning import load_processor
    from retouch.engine.pipeline import QwenEngine

    speed.require_backend(settings.attention_backend, device)
    dtype = getattr(torch, settings.dtype if device.type == "cuda" else "float32")
    preset = _read_preset(folder)
    picture = Picture(
        area_px=preset.area_px, condition_area_px=min(preset.condition_area_px, 1024 * 1024)
    )
    weights = loading.load_weights(
        folder, dtype=dtype, device=device, picture=picture, memory=memory, progress=progress
    )
    if settings.attention_backend != "native":
        weights.transformer.set_attention_backend(settings.attention_backend)
    progress("processor")
    return QwenEngine(
        weights,
        processor=load_processor(folder / "processor"),
        scheduler=loading.read_scheduler(folder / "scheduler"),
        pipeline=read_json(folder / INDEX_FILE)["_class_name"],
        preset=preset,
        model=name,
        revision=compute_revision(folder),
        run_block=speed.compile_block(speed.find_code_cache())
        if settings.compile
        else denoise.run_block,
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
