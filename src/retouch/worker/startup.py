"""Start-up checks for the Runpod worker, and detection of a dead CUDA context.

Each check fails with one line that says what to mend. The platform shows it and replaces the worker.
"""

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from retouch.engine.checkpoint.find import find_runpod_cache, is_cached
from retouch.engine.memory.probe import DRIVER
from retouch.errors import EditError
from retouch.lifecycle import ModelHost
from retouch.logs import event
from retouch.settings import InvalidSettings, Settings, load_settings

_log = logging.getLogger(__name__)
JOB_TIMEOUT_S = 570.0
"""Below 600 s, where the platform ends a job itself and the caller gets no error of ours."""
WEIGHTS_BYTES = 60_000_000_000
"""Disk that the weights of this family need: 57.7 GB, and room for the last file's partial copy."""


class StartupError(RuntimeError):
    """The worker cannot work here; the message is one line that says what to mend."""


def load_worker_settings() -> Settings:
    """Read the settings and require what a worker needs: S3, and a deadline before the platform's.

    Raises:
        StartupError: a setting is missing or wrong.
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
    if "job_timeout_seconds" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"job_timeout_seconds": JOB_TIMEOUT_S})


class StartupChecks:
    """The checks that a worker passes before it takes a job. Each raises `StartupError`."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._model_id = host.settings.model_id

    @property
    def checks(self) -> list[Callable[[], None]]:
        """The checks in order: cheap ones first, the last loads the model."""
        if self._host.settings.engine_url:
            return [self.bucket, self.weights]
        return [self.bucket, self.gpu, self.disk, self.weights]

    def bucket(self) -> None:
        """Put, get and delete a probe object."""
        try:
            self._host.open_store()
            self._host.store.check(timeout_s=self._host.settings.timeout_seconds)
        except EditError as error:
            raise StartupError(f"the bucket cannot be used: {error.message}") from error

    def gpu(self) -> None:
        """Run an operation on the GPU. Without a GPU only the demo or a directory may be loaded."""
        import torch

        if torch.cuda.is_available():
            try:
                torch.ones(8, device="cuda").sum().item()
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise StartupError(
                    f"the GPU does not compute: {reason}; replace the worker"
                ) from error
        elif DRIVER.exists():
            raise StartupError(
                f"the GPU cannot be used: this image needs a driver for CUDA {torch.version.cuda}; "
                "choose that CUDA version or a newer one in the endpoint's settings"
            )
        elif self._model_id and not Path(self._model_id).is_dir():
            raise StartupError(
                "there is no GPU: give the endpoint one, "
                "or unset MODEL_ID to try the worker with the demo model"
            )
        else:
            event(_log, "gpu.missing", level=logging.WARNING)

    def disk(self) -> None:
        """Require room for the weights if they must be downloaded."""
        if not self._model_id or Path(self._model_id).expanduser().is_dir():
            return
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = find_runpod_cache(self._model_id) or Path(HF_HUB_CACHE)
        if is_cached(self._model_id, cache):
            return
        nearest = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
        free_bytes = shutil.disk_usage(nearest).free
        if free_bytes < WEIGHTS_BYTES:
            raise StartupError(
                f"the weights need {WEIGHTS_BYTES // 10**9} GB and {free_bytes // 10**9} GB are "
                f"free: enter {self._model_id} as the endpoint's model, or raise its disk"
            )

    def weights(self) -> None:
        """Load the model and run one edit, so that the first job finds it warm."""
        try:
            self._host.load()
        except EditError as error:
            raise StartupError(error.message) from error


def is_gpu_lost() -> bool:
    """Whether every further call on the GPU fails, as after an illegal memory access.

    CUDA calls such errors sticky: only a new process helps. A synchronization fails again for them,
    and succeeds after any other error.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
