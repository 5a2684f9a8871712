"""The settings reach the model, and without any the demo is loaded."""

import logging
from pathlib import Path
from typing import Any

import pytest
from support.models.reference_edits import edit
from support.models.tiny import PRESET, build_tiny_pipeline

from retouch import wiring
from retouch.demo.processor import save_checkpoint
from retouch.engine.checkpoint import load
from retouch.errors import ModelError
from retouch.lifecycle import ModelHost
from retouch.settings import Settings

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_checkpoint(build_tiny_pipeline(), path, preset=PRESET)
    return path


def test_an_attention_backend_that_does_not_run_ends_the_start(folder: Path) -> None:
    settings = Settings(model_id=str(folder), attention_backend="_native_cudnn")
    with pytest.raises(ModelError, match="ATTENTION_BACKEND: _native_cudnn does not run here"):
        wiring.build_engine(settings)


def test_an_attention_backend_that_runs_is_used(folder: Path) -> None:
    engine = wiring.build_engine(Settings(model_id=str(folder), attention_backend="_native_math"))
    assert engine.info.attention == "_native_math"
    assert edit(engine)


def test_compiled_code_is_made_at_the_start_for_two_sizes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = set()

    def compile_block(run_block: Any) -> Any:
        def run(block: Any, image: Any, *rest: Any, exchange: None) -> Any:
            sizes.add(image.shape[1])
            return run_block(block, image, *rest, exchange=exchange)

        return run

    monkeypatch.setattr(load, "compile_block", compile_block)
    ModelHost(Settings(model_id=str(folder), compile=True)).load()
    assert len(sizes) == 2


def test_without_a_model_and_a_gpu_the_demo_is_loaded_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    engine = wiring.build_engine(Settings(_env_file=None))
    progress = vars(caplog.records[0])["fields"]["progress"]
    assert progress.startswith(
        "using the demo model, because the full model does not fit: not enough memory"
    )
    assert "MODEL_ID=Qwen/Qwen-Image-Edit" in progress
    assert engine.info.model == "retouch-demo"
    assert "this is the small demo model" in engine.info.notes[0]
    preset = engine.info.preset
    assert (preset.steps, preset.area_px, preset.guided) == (2, 512 * 512, False)
