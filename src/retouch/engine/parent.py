"""End a child process with its parent."""

import os
import threading
import time

_CHECK_EVERY_S = 1.0


def watch_parent(parent: int = 0) -> None:
    """End this process once its parent has ended, also in the middle of a step that hangs.

    A `parent` that is named may have ended before the call.
    """
    threading.Thread(target=end_with, args=(parent or os.getppid(),), daemon=True).start()


def end_with(parent: int) -> None:
    """End this process once `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(_CHECK_EVERY_S)
    os._exit(1)  # pragma: no cover - ends the test too
