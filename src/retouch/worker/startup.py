"""Start-up checks for the Runpod worker, and detection of a dead CUDA context.

Each check fails with one line that says what to mend. The platform shows it and replaces the worker.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from retouch.engine.memory.probe import require_driver
from retouch.errors import EditError, ModelError
from retouch.lifecycle import ModelHost
from retouch.logs import event
from retouch.settings import InvalidSettings, Settings, load_settings

_log = logging.getLogger(__name__)
JOB_TIMEOUT_S = 570.0
"""Below 600 s, where the platform ends a job itself and the caller gets no error of ours."""


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
        return [self.bucket, self.gpu, self.weights]

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

        try:
            require_driver()
        except ModelError as error:
            advice = "choose that CUDA version or a newer one in the endpoint's settings"
            raise StartupError(f"{error.message}; {advice}") from error
        if torch.cuda.is_available():
            try:
                torch.ones(8, device="cuda").sum().item()
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise StartupError(
                    f"the GPU does not compute: {reason}; replace the worker"
                ) from error
        elif self._model_id and not Path(self._model_id).expanduser().is_dir():
            raise StartupError(
                "there is no GPU: give the endpoint one, "
                "or unset MODEL_ID to try the worker with the demo model"
            )
        else:
            event(_log, "gpu.missing", level=logging.WARNING)

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
