"""Report the progress of a hub download in log lines instead of a progress bar."""

import io
import time
from collections.abc import Callable
from typing import Any

EVERY_S = 10.0
_MEASURED = "Reconstruct"
"""The hub library has a bar for bytes received too; this one counts bytes written to disk."""


def make_line_bar(progress: Callable[[str], None]) -> type:
    """Return a `tqdm_class` for `snapshot_download` that reports to `progress` every `EVERY_S`."""
    from tqdm import tqdm

    class Lines(tqdm):  # type: ignore[type-arg]
        reported_s = float("-inf")

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "mininterval": EVERY_S})

        def display(self, *_args: Any, **_options: Any) -> None:
            now_s = time.monotonic()
            total = int(self.total or 0) if str(self.desc).startswith(_MEASURED) else 0
            if total and self.n and now_s - self.reported_s >= EVERY_S:
                self.reported_s = now_s
                progress(f"download: {int(self.n) >> 20} of {total >> 20} MiB")

    return Lines
