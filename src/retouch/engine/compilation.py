"""Compile the transformer's block, with its code cached on disk."""

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retouch.engine.memory.plan import GIB
from retouch.logs import event

if TYPE_CHECKING:
    from retouch.engine.block import BlockCall

Setting = bool | Literal["auto"]

FILL_GPU_BYTES = 4 * GIB
"""GPU memory that filling the cache may take, and that must be free for it."""
_FILL_TIMEOUT_S = 1800.0
_MAX_VARIANTS = 64
_CODE_CACHE = "TORCHINDUCTOR_CACHE_DIR"

_log = logging.getLogger(__name__)


def find_code_cache() -> Path | None:
    """Return the directory for compiled code, beside the hub's cache, if that is writable.

    torch reads it from TORCHINDUCTOR_CACHE_DIR when it first compiles.
    """
    from huggingface_hub.constants import HF_HOME

    home = Path(HF_HOME)
    nearest = next(folder for folder in (home, *home.parents) if folder.is_dir())
    return home / "compiled" if os.access(nearest, os.W_OK) else None


@dataclass(frozen=True, slots=True)
class BlockCode:
    """What the code of a block depends on, and where it is cached.

    `config` is the transformer's, as JSON. `dtype` and `attention` are names. `area_px` and
    `condition_area_px` are of the first size that is compiled. With `fp8` the blocks make fp8 products.
    Each of the `ranks` of adapters, 0 for none, has code with terms for the `term_layers` of a block.
    """

    cache: str
    gpu: str
    torch: str
    config: str
    dtype: str
    attention: str
    area_px: int
    condition_area_px: int
    fp8: bool = False
    ranks: tuple[int, ...] = (0,)
    term_layers: tuple[str, ...] = ()

    @property
    def record(self) -> Path:
        """The file that says that the cache holds this code, made by these sources."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode())
        for path in sorted(Path(__file__).parent.glob("*.py")):
            digest.update(path.read_bytes())
        return Path(self.cache) / f"complete-{digest.hexdigest()[:32]}"

    @property
    def is_cached(self) -> bool:
        """Whether a start or a fill completed with this code."""
        return self.record.exists()

    def mark_cached(self) -> None:
        """Record that the cache holds this code."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.record.touch()


def find_place() -> tuple[str, str, str] | None:
    """Return the first three fields of `BlockCode`, or None without a GPU or a cache."""
    import torch

    cache = os.environ.get(_CODE_CACHE)
    if not cache or not torch.cuda.is_available():
        return None
    gpu = f"{torch.cuda.get_device_name()} {torch.cuda.get_device_capability()}"  # pragma: no cover
    return cache, gpu, f"{torch.__version__} {torch.version.cuda}"  # pragma: no cover


def decide(setting: Setting, code: BlockCode | None) -> bool:
    """Return whether to compile: for `auto`, where it takes no time because the code is cached."""
    return code is not None and code.is_cached if setting == "auto" else setting


def keep_code(code: BlockCode, *, compiled: bool) -> threading.Thread | None:
    """After the warm-up: record what was compiled, or compile it for the next start.

    That runs in a child process of the lowest priority, and only with `FILL_GPU_BYTES` of free GPU
    memory. The returned thread waits for it.
    """
    if compiled:
        code.mark_cached()
        return None
    if code.is_cached:
        return None
    if (free_bytes := measure_free_gpu()) < FILL_GPU_BYTES:
        event(_log, "compile.skipped", free_gib=round(free_bytes / GIB, 1))
        return None
    thread = threading.Thread(target=_fill, args=(code,), name="compile", daemon=True)
    thread.start()
    return thread


def measure_free_gpu() -> int:
    """Return the bytes of GPU memory that no process has."""
    from torch import cuda

    return int(cuda.mem_get_info()[0]) if cuda.is_available() else 0


def _fill(code: BlockCode) -> None:
    event(_log, "compile.started", gpu=code.gpu)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "retouch.engine.fill_code_cache"],
            input=json.dumps(asdict(code)),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
            timeout=_FILL_TIMEOUT_S,
        )
        reason = ended.stderr.strip().rpartition("\n")[2] if ended.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason or not code.is_cached:
        event(_log, "compile.failed", level=logging.WARNING, reason=reason)
    else:
        event(_log, "compile.finished")


def compile_block(run_block: "BlockCall") -> "BlockCall":
    """Compile the one function that runs every block; for shares of the tokens, what is around its attention.

    The number of text tokens differs with each prompt, so it is dynamic from the first call; that of
    image tokens from the second size on, so that a worker with one size runs code made for it.
    """
    import torch

    from retouch.engine.block import finish_block, project_heads

    # Beyond the limit, by default 8, calls run uncompiled: the last block and the ranks of adapters
    # have code of their own, each for the first size and for any.
    torch._dynamo.config.recompile_limit = _MAX_VARIANTS  # noqa: SLF001 - the documented switch
    compiled, project, finish = (
        torch.compile(part, backend=_compile_anywhere)
        for part in (run_block, project_heads, finish_block)
    )
    mark: Any = torch._dynamo.maybe_mark_dynamic  # noqa: SLF001 - documented for this use

    def finish_marked(block: Any, image: Any, text: Any, attended: Any, *rest: Any) -> Any:
        mark(attended, 1)  # (1, t + i, h, c)
        return finish(block, image, text, attended, *rest)

    in_halves = partial(run_block, project=project, finish=finish_marked)

    def run(block: Any, image: Any, text: Any, *rest: Any, exchange: Any = None) -> Any:
        _modulation, angles, *_ = rest
        image, text = (
            # Copy a view, as only the first block gets: it would be compiled for that alone.
            stream.clone() if stream._is_view() else stream  # noqa: SLF001 - there is no public name
            for stream in (image, text)
        )
        mark(text, 1)  # (1, t, dim)
        mark(angles, 0)  # (t + i, 1, c/2, 2)
        if exchange:  # cannot be traced
            return in_halves(block, image, text, *rest, exchange=exchange)
        return compiled(block, image, text, *rest)

    return run


def _compile_anywhere(graph: Any, inputs: Any) -> Any:
    """Compile by torch's own compiler, for weights wherever they lie in memory.

    It takes the weights of a module for inputs with fixed addresses, of use to its CUDA graphs only, and
    looks cached code up by their place in memory too: no two checkpoints have the same.
    """
    from torch._inductor.compile_fx import compile_fx

    for node in graph.graph.find_nodes(op="placeholder"):
        node.meta.get("tensor_dict", {}).pop("_dynamo_static_input_type", None)
    return compile_fx(graph, inputs)
