"""Find a checkpoint: a local directory, the hub cache, or a download from the hub."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retouch.engine.checkpoint.download_progress import make_line_bar
from retouch.engine.checkpoint.files import INDEX_FILE, PARTS, WEIGHTED, require_whole
from retouch.engine.memory.plan import FULL, EditShape, make_plan
from retouch.engine.memory.probe import GIB, FreeMemory
from retouch.engine.preset import PRESET_FILE
from retouch.errors import ModelError

FULL_MODEL = "Qwen/Qwen-Image-Edit"
LEAST_GIB = 7
"""Smaller cards could, but 54 GiB are not to be downloaded unasked for an edit of minutes."""
DEMO_FOLDER = Path(__file__).parents[2] / "demo" / "checkpoint"


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


def choose_model(
    model_id: str, memory: FreeMemory, *, progress: Callable[[str], None] = lambda _: None
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
        make_plan(FULL, EditShape(), memory)
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
