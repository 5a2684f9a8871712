"""The tiny random model as a checkpoint folder, for tests that do not look at the images."""

import atexit
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from retouch.demo.processor import save_checkpoint


@cache
def tiny_folder(*, plus: bool = False) -> Path:
    """Make the folder, of Edit-Plus if asked for, once a process, and remove it at its end."""
    from support.models.tiny import PRESET, build_tiny_pipeline

    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with _without_distributed_tensors():
        save_checkpoint(build_tiny_pipeline(plus=plus), folder, preset=PRESET)
    return folder


@contextmanager
def _without_distributed_tensors() -> Iterator[None]:
    """Save without an import of sympy and 500 more modules to tell that no tensor is distributed."""
    name = "torch.distributed.tensor"
    hidden = name not in sys.modules
    if hidden:
        sys.modules[name] = None  # type: ignore[assignment] # an import of it raises ImportError
    yield
    if hidden:
        del sys.modules[name]
