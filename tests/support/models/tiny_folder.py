"""The tiny random model as a checkpoint folder, for tests that do not look at the images."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from retouch.demo.processor import save_checkpoint


@cache
def tiny_folder(*, plus: bool = False) -> Path:
    """Make the folder, of Edit-Plus if asked for, once a process, and remove it at its end."""
    from support.models.tiny import PRESET, build_tiny_pipeline

    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_checkpoint(build_tiny_pipeline(plus=plus), folder, preset=PRESET)
    return folder
