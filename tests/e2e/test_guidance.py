"""Guidance over two real processes, with the tiny model."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from support.models.reference_edits import IMAGE, WORK
from support.models.tiny_folder import tiny_folder

from retouch.editing.ports import run_edit
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.load import load
from retouch.engine.engine import QwenEngine
from retouch.errors import ModelError, ModelLost

pytestmark = pytest.mark.e2e
GUIDED = replace(WORK, guidance_scale=4.0)
ALONE = CheckpointSettings(model_id=str(tiny_folder()))


@pytest.fixture(scope="module")
def pair() -> QwenEngine:
    """An engine of two processes."""
    return load(replace(ALONE, parallel="guidance"))


def find_second() -> int:
    """Return the process that computes the second branch."""
    children = Path("/proc/self/task").glob("*/children")
    pids = [pid for listed in children for pid in listed.read_text().split()]
    (second,) = [
        pid for pid in pids if b"guidance_child" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    return int(second)


def test_two_processes_make_the_bytes_of_one(pair: QwenEngine) -> None:
    alone, _ = run_edit(load(ALONE), [IMAGE], GUIDED)
    edited, _ = run_edit(pair, [IMAGE], GUIDED)
    assert edited.tobytes() == alone.tobytes()


def test_a_second_process_that_is_killed_in_mid_edit_loses_the_model(pair: QwenEngine) -> None:
    def kill(done: int, _: int) -> None:
        if done == 1:
            os.kill(find_second(), signal.SIGKILL)

    with pytest.raises(ModelLost):
        pair.edit(pair.prepare([IMAGE], GUIDED), on_step=kill)


def test_a_second_process_that_cannot_load_fails_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'retouch.engine.guidance_child' in ' '.join(sys.orig_argv): sys.exit(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="second GPU ended while it loaded"):
        load(replace(ALONE, parallel="guidance"))
