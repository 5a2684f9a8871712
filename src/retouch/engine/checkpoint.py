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

from retouch.engine.folder import (
    INDEX_FILE,
    PARTS,
    WEIGHTED,
    compute_revision,
    read_json,
    require_whole,
)
from retouch.errors import ModelError

if TYPE_CHECKING:
    from retouch.engine.pipeline import QwenEngine

FULL_MODEL = "Qwen/Qwen-Image-Edit"
FULL_MODEL_GIB = 64
"""Free GPU memory to take the full model unasked: a 1 MP edit peaks at 59.7 (vllm-project/vllm-omni#3684)."""
PRESET_FILE = "retouch_preset.json"


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Which weights, in which precision, where. An empty text leaves the choice to `load`.

    `dtype` is float16, bfloat16 or float32; a CPU always runs float32. `device` is cuda or cpu.
    `cache_dir` is a folder in the hub library's layout.
    """

    model_id: str = ""
    revision: str = ""
    dtype: str = "float16"
    device: str = ""
    cache_dir: str = ""
    hf_token: str = field(default="", repr=False)


class PresetFile(BaseModel):
    """`retouch_preset.json`: what a checkpoint wants that differs from the full model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    steps: int = Field(default=30, ge=1, le=50)
    guidance_scale: float = Field(default=4.0, ge=1, le=20)
    area_px: int = Field(default=1024 * 1024, ge=64 * 64)
    condition_area_px: int = Field(default=1024 * 1024, ge=64 * 64)
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

    from retouch.engine.pipeline import QwenEngine

    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    free_gib = torch.cuda.mem_get_info()[0] / 2**30 if device == "cuda" else 0.0
    model_id = choose_model(settings.model_id, free_gib=free_gib)
    if not model_id:
        from retouch.engine.tiny import build_tiny

        progress("tiny")
        return build_tiny()
    _silence_progress_bars()
    try:
        folder = find(model_id, settings)
        preset = _read_preset(folder)
        dtype = settings.dtype if device == "cuda" else "float32"
        pipe = _load_pipeline(folder, dtype=dtype, device=device, progress=progress)
        return QwenEngine(
            pipe, preset=preset, model=_name(model_id), revision=compute_revision(folder)
        )
    except ModelError as error:
        raise ModelError(f"the checkpoint {model_id} cannot be used: {error.message}") from error
    except Exception as error:  # the loaders raise what they like; a start needs one line
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelError(f"the checkpoint {model_id} cannot be used: {reason}") from error


def choose_model(model_id: str, *, free_gib: float) -> str:
    """Return the id asked for, else the full model's where it fits, else nothing.

    >>> choose_model("", free_gib=79.2), choose_model("", free_gib=0.0), choose_model("a/b", free_gib=0.0)
    ('Qwen/Qwen-Image-Edit', '', 'a/b')
    """
    return model_id or (FULL_MODEL if free_gib >= FULL_MODEL_GIB else "")


def find(model_id: str, settings: CheckpointSettings) -> Path:
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
    from huggingface_hub.errors import HFValidationError

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
    }
    try:
        folder = Path(snapshot_download(model_id, local_files_only=True, **wanted))
        require_whole(folder)
    except HFValidationError:
        raise ModelError("there is no such folder, and it is no hub id") from None
    except (FileNotFoundError, ModelError):  # not there, or a download that was broken off
        folder = Path(snapshot_download(model_id, **wanted))
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


def _load_pipeline(
    folder: Path, *, dtype: str, device: str, progress: Callable[[str], None]
) -> Any:
    """Load every part, and refuse what the loaders would make up: weights and tokens."""
    import diffusers
    import torch
    import transformers

    from retouch.engine.conditioning import load_processor, require_template

    classes: dict[str, Any] = {
        "transformer": diffusers.QwenImageTransformer2DModel,
        "vae": diffusers.AutoencoderKLQwenImage,
        "text_encoder": transformers.Qwen2_5_VLForConditionalGeneration,
    }
    parts: dict[str, Any] = {}
    for name, loader in classes.items():
        progress(name)
        parts[name], report = loader.from_pretrained(
            str(folder),
            subfolder=name,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        if lacking := [*report["missing_keys"], *report["mismatched_keys"]]:
            raise ModelError(
                f"{name} lacks {len(lacking)} weights, such as {min(map(str, lacking))}"
            )
        parts[name].to(device)
        if device == "cpu":
            # Left in the file's pages, weights are not aligned, and sums round differently.
            for weights in parts[name].parameters():
                weights.data = weights.data.clone()
    progress("processor")
    pipeline = getattr(diffusers, read_json(folder / INDEX_FILE)["_class_name"])
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler
    processor = load_processor(folder / "processor")
    pipe = pipeline(
        **parts,
        scheduler=scheduler.from_pretrained(folder / "scheduler"),
        tokenizer=processor.tokenizer,
        processor=processor,
    )
    require_template(pipe)
    return pipe


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
