"""A Runpod worker as a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from support.models.tiny_folder import tiny_folder

ROOT = Path(__file__).parents[3]
_WAIT_S = 60.0


class WorkerProcess:
    """A worker as a process of its own, in a folder without a `.env`; its output is kept."""

    def __init__(self, folder: Path, command: list[str], environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and options
                [sys.executable, "-u", *command],
                cwd=folder,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(folder),
                    "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}",
                    "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": "1",
                    "MODEL_ID": str(tiny_folder()),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log as objects; only the SDK's banner is plain text."""
        texts = [text for text in self.output.splitlines() if not text.startswith("--- Starting ")]
        return [json.loads(text) for text in texts]

    @property
    def status(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> list[int]:
        """Kill only this process; return its children."""
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        started = [int(pid) for thread in threads for pid in thread.read_text().split()]
        self._process.kill()
        return started

    def wait(self, timeout_s: float = _WAIT_S) -> int:
        return self._process.wait(timeout_s)
