"""What a Runpod worker needs before it takes a job, and whether its GPU has been lost since.

Each check says in one line what to mend; the platform shows that line and replaces the worker.
"""

import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from retouch import logs, wiring
from retouch.editing.editor import Editor
from retouch.editing.ports import Engine
from retouch.engine.checkpoint.find import find_runpod_cache
from retouch.errors import EditError
from retouch.logs import event
from retouch.settings import InvalidSettings, Settings, load_settings
from retouch.storage.port import Store

_log = logging.getLogger(__name__)
JOB_TIMEOUT_S = 570.0
"""Below the 600 s after which the platform ends a job itself, and its error with it."""
WEIGHTS_BYTES = 60_000_000_000
"""What the weights of this family need on a disk: 57.7 GB, and room for the last file's draft."""
_DRIVER = Path("/dev/nvidiactl")


class StartupError(RuntimeError):
    """The worker cannot work here; the one line says what to mend."""


def load_worker_settings() -> Settings:
    """Read the settings as a worker needs them: with S3, and an end before the platform's.

    Raises:
        Unfit: a setting is missing or wrong.
    """
    try:
        settings = load_settings()
    except InvalidSettings as error:
        raise StartupError(str(error)) from None
    if not settings.uses_s3:
        raise StartupError(
            "a Runpod worker keeps its results in S3: "
            "set S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY and S3_BUCKET"
        )
    limits: dict[str, float] = {"max_queue": max(settings.max_queue, settings.prefetch_jobs)}
    if "job_timeout_seconds" not in settings.model_fields_set:
        limits["job_timeout_seconds"] = JOB_TIMEOUT_S
    return settings.model_copy(update=limits)


class StartupChecks:
    """The start of a worker, as checks that each build on the ones before."""

    def __init__(self, *, platform_secrets: Sequence[str] = ()) -> None:
        self._platform_secrets = platform_secrets
        self._settings: Settings | None = None
        self._store: Store | None = None
        self._engine: Engine | None = None
        self._editor: Editor | None = None
        self.exits = AsyncExitStack()

    @property
    def checks(self) -> list[Callable[[], None]]:
        """The checks in their order; each raises `Unfit`."""
        return [self.settings, self.bucket, self.gpu, self.disk, self.weights]

    @property
    def editor(self) -> Editor:
        """The editor, once every check has passed; built for the first job.

        Not before: the SDK forks its heartbeat after the checks, and a decoder child that is just
        being started then is never ready (its pipes are open in the heartbeat too).
        """
        if self._editor is None:
            assert self._engine is not None  # noqa: S101 - no job comes before the last check
            self._editor = wiring.build_editor(
                self._require_settings(), self._engine, self._require_store(), exits=self.exits
            )
        return self._editor

    @property
    def jobs_at_a_time(self) -> int:
        """How many jobs the SDK's loop may hold, once the settings are read."""
        return 1 + self._require_settings().prefetch_jobs

    def settings(self) -> None:
        """Read the settings, and from now on log by them."""
        self._settings = load_worker_settings()
        secrets = [*self._settings.secrets, *self._platform_secrets]
        logs.install(self._settings.log_level, secrets=secrets)

    def bucket(self) -> None:
        """Put, get and delete a probe object."""
        settings = self._require_settings()
        try:
            self._store = wiring.build_store(settings)
            self._store.check(timeout_s=settings.timeout_seconds)
        except EditError as error:
            raise StartupError(f"the bucket cannot be used: {error.message}") from error

    def gpu(self) -> None:
        """Run something on the GPU; without any, only the demo or a folder makes sense."""
        import torch

        if torch.cuda.is_available():
            try:
                torch.ones(8, device="cuda").sum().item()
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise StartupError(
                    f"the GPU does not compute: {reason}; replace the worker"
                ) from error
        elif _DRIVER.exists():
            raise StartupError(
                f"the GPU cannot be used: this image needs a driver for CUDA {torch.version.cuda}; "
                "choose that CUDA version or a newer one in the endpoint's settings"
            )
        elif (model_id := self._require_settings().model_id) and not Path(model_id).is_dir():
            raise StartupError(
                "there is no GPU: give the endpoint one, "
                "or unset MODEL_ID to try the worker with the demo model"
            )
        else:
            event(_log, "gpu.missing", level=logging.WARNING)

    def disk(self) -> None:
        """Where the weights are still to be downloaded, require room for them."""
        settings = self._require_settings()
        if not settings.model_id or Path(settings.model_id).expanduser().is_dir():
            return
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = find_runpod_cache(settings.model_id) or Path(HF_HUB_CACHE)
        repository = cache / f"models--{settings.model_id.replace('/', '--')}"
        if (repository / "snapshots").is_dir():
            return
        nearest = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
        free_bytes = shutil.disk_usage(nearest).free
        if free_bytes < WEIGHTS_BYTES:
            raise StartupError(
                f"the weights need {WEIGHTS_BYTES // 10**9} GB and {free_bytes // 10**9} GB are "
                f"free: enter {settings.model_id} as the endpoint's model, or raise its disk"
            )

    def weights(self) -> None:
        """Load the checkpoint and run one edit, so that the first job finds it warm."""
        settings = self._require_settings()
        began = time.perf_counter()
        try:
            engine = wiring.build_engine(settings)
            loaded = time.perf_counter()
            wiring.warm_up(engine)
        except EditError as error:
            raise StartupError(error.message) from error
        self._engine = engine
        event(
            _log,
            "engine.ready",
            model=engine.info.model,
            load_s=loaded - began,
            warm_up_s=time.perf_counter() - loaded,
        )

    def _require_store(self) -> Store:
        assert self._store is not None  # noqa: S101 - the bucket is checked before
        return self._store

    def _require_settings(self) -> Settings:
        assert self._settings is not None  # noqa: S101 - they are checked first
        return self._settings


def is_gpu_lost() -> bool:
    """Whether every further call on the GPU fails, as after an illegal access: only a restart helps.

    CUDA calls such errors sticky; asking the device again tells them from those that pass.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
