"""LoRA files for the settings and the command line: download one, describe one."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from retouch import demo
from retouch.engine.checkpoint.files import read_json
from retouch.engine.checkpoint.find import CheckpointSettings, find, find_cache, is_cached
from retouch.engine.memory import probe
from retouch.errors import EditError, ModelError
from retouch.net.download import Downloader
from retouch.net.download_limiter import DownloadLimiter
from retouch.net.limits import FetchLimits
from retouch.net.url import parse_url
from retouch.settings import Settings

_TIMEOUT_S = 600.0
_DEMO = "the demo model"


def fetch_adapter(url: str, *, limits: FetchLimits) -> bytes:
    """Download a LoRA file through the same guard as sources, in the calling thread.

    Raises:
        ModelError: it cannot be downloaded.
    """

    async def fetch() -> bytes:
        limiter = DownloadLimiter(max_bytes=limits.max_bytes)
        with limiter.admit() as place:
            download = await Downloader(limits).fetch(
                parse_url(url), timeout_s=_TIMEOUT_S, place=place
            )
        return download.body or b""

    try:
        return asyncio.run(fetch())
    except EditError as error:
        raise ModelError(f"it cannot be downloaded ({error.code})") from error
    except ValueError as error:
        raise ModelError(f"its URL {error}") from error


def describe_adapter(path: Path, settings: Settings) -> list[str]:
    """Describe a LoRA file, a fact a line, for MODEL_ID, the full model or the demo model.

    What merging it would lose is measured where the weights are on this machine.

    Raises:
        ModelError: it cannot be applied in full to any; the message says why.
    """
    from retouch.engine.adapters import describe, keys, read, shapes
    from retouch.engine.checkpoint.merging import describe_losses

    own = _find_own(settings)
    folders = {**own, _DEMO: demo.CHECKPOINT_DIR}
    configs = {name: read_json(path / "transformer/config.json") for name, path in folders.items()}
    bases = {
        **{name: configs[name] for name in own},
        "Qwen-Image-Edit, 2509 and 2511": dict(shapes.FULL_CONFIG),
        _DEMO: configs[_DEMO],
    }

    def losses(base: str, adapter: read.Adapter) -> Iterable[str]:
        if base not in folders:
            return ()
        return describe_losses(adapter, folders[base], probe.find_device())

    try:
        return describe.describe_adapter(path, bases, losses)
    except keys.AdapterRefused as error:
        raise ModelError(f"{path.name}: {error}") from error


def _find_own(settings: Settings) -> dict[str, Path]:
    """Return the folder of MODEL_ID by its name, if it is on this machine."""
    model_id = settings.model_id
    if not model_id:
        return {}
    cache = find_cache(model_id)
    if not Path(model_id).expanduser().is_dir() and not is_cached(model_id, cache):
        return {}
    found = CheckpointSettings(revision=settings.model_revision, cache_dir=str(cache))
    return {model_id: find(model_id, found)}
