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
from retouch.demo import build, photos, steps, train_autoencoder, train_edit_model
from retouch.editing.ports import EditParams, run_edit
from retouch.engine.checkpoint import find, load

pytestmark = pytest.mark.e2e


class StepClock(steps.StageClock):
    """Counts one second per step, on any machine."""

    @property
    def elapsed_s(self) -> float:
        return float(self.iteration)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads slow tiny steps down, tenfold on busy cores
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in (train_autoencoder, train_edit_model):
        monkeypatch.setattr(stage, "StageClock", StepClock)
    monkeypatch.setattr(photos, "fetch", write_pictures)


def train(folder: Path, *options: str, autoencoder_s: float, editor_s: float) -> int:
    folders = [f"--{name}={folder / name}" for name in ("pictures", "work", "out")]
    stages = [f"--autoencoder-s={autoencoder_s}", f"--editor-s={editor_s}"]
    return main(["train-demo", "--quick", "--device=cpu", *folders, *stages, *options])


def logged_steps(lines: str, stage: str) -> list[int]:
    """The step of each progress line of a stage."""
    logged = [line for line in lines.splitlines() if line.startswith(stage)]
    return [int(line.split("step ")[1].split(":")[0]) for line in logged]


def require_averages_of_white_latents(folder: Path) -> None:
    """Compare the checkpoint with the training state."""
    saved = torch.load(folder / "work" / "editor.pt", weights_only=True)
    model: Any = QwenImageTransformer2DModel
    written = list(model.from_pretrained(folder / "out" / "transformer").parameters())
    average, last = (
        [value.half().float() for value in saved[name][: len(written)]]
        for name in ("average", "weights")
    )
    assert all(map(torch.equal, written, average))
    assert not all(map(torch.equal, written, last))
    config = json.loads((folder / "out" / "vae" / "config.json").read_text())
    latents = torch.load(folder / "work" / "autoencoder.pt", weights_only=True)
    assert config["latents_std"] == latents["latents_std"] != [1.0] * build.Z


def test_an_interrupted_run_resumes_and_writes_a_checkpoint_that_edits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def save_and_interrupt(state: Any, path: Path) -> None:
        save(state, path)
        if path.name == "editor.pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as once:
        once.setattr(torch, "save", save_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, autoencoder_s=3, editor_s=5)
    assert logged_steps(capsys.readouterr().err, "autoencoder") == [2, 3]
    saved = torch.load(tmp_path / "work" / "editor.pt", weights_only=True)
    assert saved["iteration"] == 2

    assert train(tmp_path, autoencoder_s=3, editor_s=5) == 0
    output = capsys.readouterr()
    assert output.out.split() == [str(tmp_path / "out")]
    assert logged_steps(output.err, "autoencoder") == [3]
    assert logged_steps(output.err, "editor") == [4, 4, 5]  # loss, validation, result
    require_averages_of_white_latents(tmp_path)

    settings = find.CheckpointSettings(model_id=str(tmp_path / "out"))
    engine = load.load(settings)
    assert engine.info.preset.steps == build.PRESET.steps
    params = EditParams("make it warmer", " ", 1, 2, 1.0, "Euler", 96, 64)
    with Image.open(SAMPLE) as photo:
        image, _ = run_edit(engine, [photo.convert("RGB")], params)
    assert image.size == (96, 64)


def test_fine_tuning_keeps_the_autoencoder_and_the_tokenizer(tmp_path: Path) -> None:
    init = tmp_path / "init"
    build.save(build.build(build.ModelSize(base=8, layers=1, heads=6)), init)
    assert train(tmp_path, f"--init={init}", autoencoder_s=0, editor_s=2) == 0
    weights = "diffusion_pytorch_model.safetensors"

    def is_kept(name: str) -> bool:
        return (tmp_path / "out" / name).read_bytes() == (init / name).read_bytes()

    assert is_kept(f"vae/{weights}")
    assert is_kept("tokenizer/tokenizer.json")
    assert not is_kept(f"transformer/{weights}")
    assert not is_kept("text_encoder/model.safetensors")
