"""Find a checkpoint: a local directory, the hub cache, or a download from the hub."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from retouch.engine.checkpoint import hub
from retouch.engine.checkpoint.files import WEIGHTED, require_complete
from retouch.engine.profiles import FULL
from retouch.errors import ModelError
from retouch.settings.gpus import PROCESSES, Parallel
from retouch.settings.loras import LoraSetting

FULL_MODEL = "Qwen/Qwen-Image-Edit"
RUNPOD_MODELS = Path("/runpod-volume/huggingface-cache/hub")
"""Where Runpod puts an endpoint's cached model before it starts a worker, in the hub's layout."""


def refuse_urls(_: str) -> bytes:
    """Download nothing.

    Raises:
        ModelError: always.
    """
    raise ModelError("URLs are not fetched here")


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    """Which weights, in which precision, where and how.

    `model_id` is a directory or a hub id. `dtype` is float16, bfloat16 or float32; a CPU always runs
    float32. `cache_dir` is a directory in the hub library's layout. `gpu_memory_gib` and
    `host_memory_gib` limit the engine's memory, unless they are 0. With `parallel` further processes
    share the host's memory with it, and have a GPU each. `max_result_px` is an area of results to make
    room for. `prompt_cache_bytes` is host memory for the embeddings of repeated prompts.
    `transformer_file` and `text_encoder_file` name files with those parts' weights (see
    `weights_file`), and `family` the model that the first is of, where it does not say so itself.
    `adapters` are those that requests may choose among; `fetch` downloads one at an https URL. With
    `merge_adapters` those that are always applied are merged into the weights; requests may bring
    adapters of `lora_url_bytes` together.
    `quantization` is auto, none, or the name of the encoding that weights are packed to.
    `profiles` are the names of those to offer, the default first; `profiles_file` has more of them.
    """

    model_id: str = ""
    revision: str = ""
    dtype: str = "float16"
    cache_dir: str = ""
    gpu_memory_gib: float = 0.0
    host_memory_gib: float = 0.0
    parallel: Parallel = "none"
    max_result_px: int = 0
    prompt_cache_bytes: int = 0
    quantization: str = "none"
    attention_backend: str = "auto"
    compile: bool | Literal["auto"] = "auto"
    adapters: tuple[LoraSetting, ...] = ()
    merge_adapters: bool = False
    lora_url_bytes: int = 0
    fetch: Callable[[str], bytes] = refuse_urls
    profiles: tuple[str, ...] = (FULL,)
    profiles_file: str = ""
    hf_token: str = field(default="", repr=False)
    transformer_file: str = ""
    text_encoder_file: str = ""
    family: str = ""

    def share_host(self, free_gib: float) -> "CheckpointSettings":
        """Return the settings of each of the processes, which share what is free of the host's memory."""
        shared_gib = min(self.host_memory_gib or free_gib, free_gib)
        return replace(self, host_memory_gib=shared_gib / self.processes)

    @property
    def processes(self) -> int:
        """How many processes edit together, with a GPU each."""
        return PROCESSES[self.parallel]

    @property
    def splits_tokens(self) -> bool:
        """Whether processes share the tokens of a guidance branch."""
        return "ulysses" in self.parallel

    @property
    def weighted(self) -> tuple[str, ...]:
        """The parts whose weights `model_id` has."""
        files = {"transformer": self.transformer_file, "text_encoder": self.text_encoder_file}
        return tuple(part for part in WEIGHTED if not files.get(part))


def find_runpod_cache(model_id: str) -> Path | None:
    """Return the directory of Runpod's cached models if it holds `model_id`, else None."""
    return RUNPOD_MODELS if is_cached(model_id, RUNPOD_MODELS) else None


def find_cache(model_id: str) -> Path:
    """Return the hub cache for `model_id`: Runpod's if that holds it, else the hub library's."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return find_runpod_cache(model_id) or Path(HF_HUB_CACHE)


def is_cached(model_id: str, cache: Path) -> bool:
    """Whether a hub cache holds a snapshot of `model_id`, complete or not."""
    return any((path / "snapshots").is_dir() for path in hub.find_repositories(model_id, cache))


def find(
    model_id: str,
    settings: CheckpointSettings,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Return the folder of `model_id`, downloaded if it is not cached; its files are complete.

    Raises:
        ModelError: there is no such checkpoint, or a file of it is missing or damaged.
    """
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if settings.revision:
            raise ModelError("a directory has no revisions: unset MODEL_REVISION")
        require_complete(folder, settings.weighted)
        return folder
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(settings.cache_dir or HF_HUB_CACHE)
    revision = settings.revision
    snapshot = hub.find_snapshot(
        model_id, cache, revision=revision, progress=progress, weighted=settings.weighted
    )
    if snapshot is None:
        snapshot = hub.download(
            model_id,
            revision=revision,
            cache=cache,
            token=settings.hf_token,
            progress=progress,
            weighted=settings.weighted,
            packed=settings.quantization not in {"auto", "none"},
        )
        require_complete(snapshot, settings.weighted)
    return snapshot
