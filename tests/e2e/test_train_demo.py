"""`python -m retouch train-demo --quick`, in this process, on a CPU."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from PIL import Image
from support.demo.album import SAMPLE, write_pictures

from retouch.__main__ import main
from retouch.demo import build, photos, steps, train_autoencoder, train_editor
from retouch.editing.ports import EditParams, run_edit
from retouch.engine.checkpoint import find, load

pytestmark = pytest.mark.e2e


class StepClock(steps.Clock):
    """A machine that makes one step a second, whatever this one makes."""

    @property
    def elapsed_s(self) -> float:
        return float(self.iteration)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny steps gain nothing from more; on shared cores they lose tenfold
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do at every second step what is otherwise done now and then; take the pictures at hand."""
    for stage in (train_autoencoder, train_editor):
        monkeypatch.setattr(stage, "Clock", StepClock)
        monkeypatch.setattr(stage, "_SAY_EVERY", 2)
        monkeypatch.setattr(stage, "_SAVE_EVERY_S", 1)
    for every in ("_AVERAGE_EVERY", "_RENEW_EVERY"):
        monkeypatch.setattr(train_editor, every, 2)
    monkeypatch.setattr(train_editor, "_CHECK_EVERY_S", 1)
    monkeypatch.setattr(photos, "fetch", write_pictures)


def train(folder: Path, *, autoencoder_s: float, editor_s: float) -> int:
    folders = [f"--{name}={folder / name}" for name in ("pictures", "work", "out")]
    stages = [f"--autoencoder-s={autoencoder_s}", f"--editor-s={editor_s}"]
    return main(["train-demo", "--quick", "--device=cpu", *folders, *stages])


def steps_said(lines: str, stage: str) -> list[int]:
    """Give the step of each progress line of a stage."""
    said = [line for line in lines.splitlines() if line.startswith(stage)]
    return [int(line.split("step ")[1].split(":")[0]) for line in said]


def require_averages_of_white_latents(folder: Path) -> None:
    """Hold what was written against the state the training left."""
    saved = torch.load(folder / "work" / "editor.pt", weights_only=True)
    model: Any = QwenImageTransformer2DModel
    written = list(model.from_pretrained(folder / "out" / "transformer").parameters())
    average, last = (
        [value.half().float() for value in saved[kept][: len(written)]]
        for kept in ("average", "weights")
    )
    assert all(map(torch.equal, written, average))
    assert not all(map(torch.equal, written, last))
    config = json.loads((folder / "out" / "vae" / "config.json").read_text())
    latents = torch.load(folder / "work" / "autoencoder.pt", weights_only=True)
    assert config["latents_std"] == latents["latents_std"] != [1.0] * build.Z


@pytest.mark.usefixtures("_hurried")
def test_a_run_that_was_broken_off_goes_on_and_ends_in_a_checkpoint_that_edits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = train_editor._save  # noqa: SLF001 - where a run may be broken off without loss

    def save_and_break_off(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(train_editor, "_save", save_and_break_off)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, autoencoder_s=3, editor_s=5)
    assert steps_said(capsys.readouterr().err, "autoencoder") == [2, 3]
    saved = torch.load(tmp_path / "work" / "editor.pt", weights_only=True)
    assert saved["iteration"] == 2

    assert train(tmp_path, autoencoder_s=3, editor_s=5) == 0
    went_on = capsys.readouterr()
    assert went_on.out.split() == [str(tmp_path / "out")]
    assert steps_said(went_on.err, "autoencoder") == [3]
    assert steps_said(went_on.err, "editor") == [4, 4, 5]  # on from 2: loss, check, result
    require_averages_of_white_latents(tmp_path)

    settings = find.CheckpointSettings(model_id=str(tmp_path / "out"))
    engine = load.load(settings)
    assert engine.info.preset.steps == build.PRESET.steps
    work = EditParams("make it warmer", " ", 1, 2, 1.0, "Euler", 96, 64)
    with Image.open(SAMPLE) as photo:
        image, _ = run_edit(engine, [photo.convert("RGB")], work)
    assert image.size == (96, 64)
