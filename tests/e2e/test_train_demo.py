"""`python -m retouch train-demo --quick`, in this process, on a CPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from demo_album import write_pictures

from retouch.__main__ import main

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_pictures(folder / "pictures")
    return folder


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    with torch.random.fork_rng():
        yield
    torch.set_flush_denormal(False)


def train(folder: Path, *, autoencoder_s: float, editor_s: float) -> int:
    folders = [f"--{name}={folder / name}" for name in ("pictures", "work", "out")]
    stages = [f"--autoencoder-s={autoencoder_s}", f"--editor-s={editor_s}"]
    return main(["train-demo", "--quick", "--device=cpu", *folders, *stages])


def steps_said(lines: str, stage: str) -> list[int]:
    """Give the step of each progress line of a stage."""
    said = [line for line in lines.splitlines() if line.startswith(stage)]
    return [int(line.split("step ")[1].split(":")[0]) for line in said]
