"""Have the system read a checkpoint's weights from the disk while Python imports its libraries."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

STEP_BYTES = 8 << 20
"""Asked for at a time, so that it ends soon when it is no longer wanted."""


@contextmanager
def reading_ahead(paths: Sequence[Path], *, max_bytes: int) -> Iterator[None]:
    """Ask for the files in order, in a thread, until the block ends or `max_bytes` are asked for.

    It only fills the page cache, which the system takes back where memory is short. Files that cannot
    be opened are left to whoever reads them.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_ask, args=(paths, max_bytes, stop), name="read-ahead", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()


def _ask(paths: Sequence[Path], max_bytes: int, stop: threading.Event) -> None:
    left = max_bytes
    for path in paths:
        with suppress(OSError), path.open("rb", buffering=0) as file:
            size_bytes = min(left, path.stat().st_size)
            for offset in range(0, size_bytes, STEP_BYTES):
                if stop.is_set():
                    return
                length = min(STEP_BYTES, size_bytes - offset)
                os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_WILLNEED)
            left -= size_bytes
