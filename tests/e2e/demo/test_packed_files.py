"""The demo model with its weights in files as they are found in the field: it edits as before."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from support.demo.album import SAMPLE
from support.models.packed_files import in_declared_fp8, in_old_scaled_fp8, is_matrix, save_gguf
from support.models.reference_edits import edit

from retouch.demo import CHECKPOINT_DIR
from retouch.editing.ports import EditParams
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.load import load
from retouch.errors import ModelError

pytestmark = pytest.mark.e2e
WORK = EditParams(
    prompt="make it black and white",
    negative_prompt="",
    seed=7,
    steps=2,
    guidance_scale=1.0,
    scheduler="Euler",
    width_px=256,
    height_px=192,
)
PHOTO = Image.open(SAMPLE).convert("RGB").resize((256, 192), Image.Resampling.LANCZOS)
TRANSFORMER = CHECKPOINT_DIR / "transformer" / "diffusion_pytorch_model.safetensors"
TEXT_ENCODER = CHECKPOINT_DIR / "text_encoder" / "model.safetensors"


def run(*, kept: str = "", **files: str) -> np.ndarray:
    """Edit with weights kept as `kept` says, else expanded."""
    settings = CheckpointSettings(
        model_id=str(CHECKPOINT_DIR), quantization="auto" if kept else "none", **files
    )
    engine = load(settings)
    assert engine.info.quantization == (kept or "none")
    return np.frombuffer(edit(engine, WORK, PHOTO), dtype=np.uint8).astype(np.float64)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, ((one - other) ** 2).mean())))


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return run()


def write_gguf(kind: gguf.GGMLQuantizationType, path: Path) -> str:
    save_gguf(load_file(TRANSFORMER), path, kind)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "least_db"),
    [(gguf.GGMLQuantizationType.Q8_0, 40), (gguf.GGMLQuantizationType.Q4_0, 22)],
    ids=["Q8_0", "Q4_0"],
)
def test_a_gguf_file_edits_as_the_checkpoint(
    tmp_path: Path, plain: np.ndarray, kind: gguf.GGMLQuantizationType, least_db: float
) -> None:
    path = write_gguf(kind, tmp_path / "w.gguf")

    packed = run(
        transformer_file=path, family="edit", kept=f"{kind.name} (file), text encoder none"
    )
    expanded = run(transformer_file=path, family="edit")

    assert psnr(packed, plain) > least_db
    assert np.array_equal(packed, expanded)


def test_scaled_fp8_files_of_both_parts_edit_as_the_checkpoint(
    tmp_path: Path, plain: np.ndarray
) -> None:
    transformer = in_old_scaled_fp8(load_file(TRANSFORMER)).save(tmp_path / "t.safetensors")
    text_encoder = in_declared_fp8(load_file(TEXT_ENCODER)).save(tmp_path / "e.safetensors")

    files = {
        "transformer_file": str(transformer),
        "text_encoder_file": str(text_encoder),
        "family": "edit",
    }
    packed = run(**files, kept="fp8 (file)")
    expanded = run(**files)

    assert psnr(packed, plain) > 30
    assert np.array_equal(packed, expanded)


def test_a_file_that_does_not_fit_is_refused_in_one_line_before_any_weight_is_read(
    tmp_path: Path,
) -> None:
    weights = load_file(TRANSFORMER)
    name = next(name for name, weight in weights.items() if is_matrix(name, weight))
    del weights[name]
    path = tmp_path / "w.gguf"
    save_gguf(weights, path, gguf.GGMLQuantizationType.Q8_0)

    with pytest.raises(ModelError, match=rf"1 weights are missing .*, such as transformer\.{name}"):
        run(transformer_file=str(path), family="edit")
    with pytest.raises(ModelError, match="set MODEL_FAMILY to edit, 2509 or 2511"):
        run(transformer_file=str(path))
