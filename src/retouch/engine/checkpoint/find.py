"""Find a checkpoint: a local directory, the hub cache, or a download from the hub."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retouch.engine.checkpoint.download_progress import make_line_bar
from retouch.engine.checkpoint.files import INDEX_FILE, PARTS, WEIGHTED, require_complete
from retouch.engine.preset import PRESET_FILE
from retouch.errors import ModelError

FULL_MODEL = "Qwen/Qwen-Image-Edit"
RUNPOD_MODELS = Path("/runpod-volume/huggingface-cache/hub")
"""Where Runpod puts an endpoint's cached model before it starts a worker, in the hub's layout."""


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Which weights, in which precision, where and how.

    `model_id` is a directory or a hub id. `dtype` is float16, bfloat16 or float32; a CPU always runs
    float32. `cache_dir` is a directory
    in the hub library's layout. `gpu_memory_gib` limits the engine's GPU memory, unless it is 0.
    """

    model_id: str = ""
    revision: str = ""
    dtype: str = "float16"
    cache_dir: str = ""
    gpu_memory_gib: float = 0.0
    attention_backend: str = "auto"
    compile: bool = False
    hf_token: str = field(default="", repr=False)


def find_runpod_cache(model_id: str) -> Path | None:
    """Return the directory of Runpod's cached models if it holds `model_id`, else None."""
    return RUNPOD_MODELS if is_cached(model_id, RUNPOD_MODELS) else None


def is_cached(model_id: str, cache: Path) -> bool:
    """Whether a hub cache holds a snapshot of `model_id`, complete or not."""
    return (cache / f"models--{model_id.replace('/', '--')}" / "snapshots").is_dir()


def find(
    model_id: str,
    settings: CheckpointSettings,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Return the folder of `model_id`, downloaded if it is not cached; its files are complete.

    Raises:
        ModelError: there is no such checkpoint, or a file of it is missing or truncated.
    """
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if settings.revision:
            raise ModelError("a directory has no revisions: unset MODEL_REVISION")
        require_complete(folder)
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    options: dict[str, Any] = {
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
        folder = Path(snapshot_download(model_id, local_files_only=True, **options))
        require_complete(folder)
    except HFValidationError:
        raise ModelError("there is no such directory, and it is not a valid hub id") from None
    except (FileNotFoundError, ModelError):  # not cached, or an interrupted download
        bars = make_line_bar(progress)
        try:
            folder = Path(snapshot_download(model_id, tqdm_class=bars, **options))
        except LocalEntryNotFoundError as error:
            raise ModelError(
                "it is not cached completely, and the hub cannot be reached: check the network, set "
                "HF_ENDPOINT to a mirror, or MODEL_ID to a directory"
            ) from error
        require_complete(folder)
    return folder
