"""A download's progress as a line now and then, in place of a bar: logs have no room for bars."""

import io
import time
from collections.abc import Callable
from typing import Any

EVERY_S = 10.0
_MEASURED = "Reconstruct"
"""The hub library has a bar for the bytes on the network too; this one's are those on the disk."""


def make_line_bar(progress: Callable[[str], None]) -> type:
    """Make what `snapshot_download` takes as `tqdm_class`; it tells `progress` how far it is."""
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[type-arg]
        told_s = float("-inf")

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "mininterval": EVERY_S})

        def display(self, *_args: Any, **_options: Any) -> None:
            now_s = time.monotonic()
            total = int(self.total or 0) if str(self.desc).startswith(_MEASURED) else 0
            if total and self.n and now_s - self.told_s >= EVERY_S:
                self.told_s = now_s
                progress(f"download: {int(self.n) >> 20} of {total >> 20} MiB")

    return Lines
