"""Edits over two real processes, with the tiny model."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.models.reference_edits import IMAGE, WORK
from support.models.streaming_loads import StreamingLoads, pixels
from support.models.tiny_folder import tiny_folder

from retouch.editing.ports import run_edit
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.load import load
from retouch.engine.engine import QwenEngine
from retouch.engine.memory.shared_memory import HostShare, sharing
from retouch.errors import ModelError, ModelLost

pytestmark = pytest.mark.e2e
GUIDED = replace(WORK, guidance_scale=4.0)
ALONE = CheckpointSettings(model_id=str(tiny_folder()))


def find_pixels(engine: QwenEngine) -> np.ndarray:
    return np.asarray(run_edit(engine, [IMAGE], GUIDED)[0]).astype(int)


@pytest.fixture(scope="module")
def pair() -> QwenEngine:
    """An engine of two processes."""
    return load(replace(ALONE, parallel="guidance"))


def test_processes_that_stream_have_the_weights_on_the_host_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This one and another, with plans as on a small GPU: on a CPU no plan streams."""
    command = [sys.executable, "-m", "support.models.streaming_loads", str(tiny_folder())]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with sharing(2):
        share = HostShare.find()
        assert share
        here = pixels(StreamingLoads(monkeypatch).load(share))
        with subprocess.Popen(  # noqa: S603 - our own interpreter and program
            command, pass_fds=[share.descriptor], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            count, digest = json.loads(process.stdout.readline())
            parts = [measure_part(pid) for pid in (os.getpid(), process.pid)]
        used_bytes = share.used_bytes
    assert count == 0
    assert digest == hashlib.sha256(here).hexdigest()
    assert min(parts) > 0
    assert sum(parts) <= used_bytes


def measure_part(pid: int) -> int:
    """Return a process's part of the bytes that it shares."""
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    found = re.findall(r"memfd:retouch-weights.*\n(?:\w+:.*\n)*?Pss: +(\d+) kB", smaps)
    return sum(int(kib) << 10 for kib in found)


def find_second() -> int:
    """Return the process that computes the second branch."""
    children = Path("/proc/self/task").glob("*/children")
    pids = [pid for listed in children for pid in listed.read_text().split()]
    (second,) = [pid for pid in pids if b"rank_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]
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
        "import sys\nif 'retouch.engine.rank_child' in ' '.join(sys.orig_argv): sys.exit(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="another GPU ended while it loaded"):
        load(replace(ALONE, parallel="guidance"))


def test_two_processes_share_the_tokens_until_one_is_killed() -> None:
    engine = load(replace(ALONE, parallel="ulysses"))
    assert abs(find_pixels(engine) - find_pixels(load(ALONE))).max() <= 1

    def stop_and_kill(done: int, _: int) -> None:
        if done == 1:  # it never comes to the exchange that this one waits in
            os.kill(find_second(), signal.SIGSTOP)
            threading.Timer(0.5, os.kill, (find_second(), signal.SIGKILL)).start()

    with pytest.raises(ModelLost):
        engine.edit(engine.prepare([IMAGE], GUIDED), on_step=stop_and_kill)
    with pytest.raises(ModelLost):
        find_pixels(engine)


def test_a_fault_of_the_first_process_ends_the_second_which_waits_for_it() -> None:
    engine = load(replace(ALONE, parallel="ulysses"))
    engine.weights.transformer.transformer_blocks[1].img_norm1.eps = None
    with pytest.raises(ModelLost):
        find_pixels(engine)
