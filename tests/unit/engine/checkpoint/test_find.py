from pathlib import Path

import pytest
from support.models.checkpoints import COMMIT, make_cache, make_folder

from retouch.engine.checkpoint import find
from retouch.engine.checkpoint.files import compute_revision
from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.preset import PresetFile
from retouch.errors import ModelError


def test_a_folder_is_found_without_the_hub(tmp_path: Path) -> None:
    make_folder(tmp_path)
    assert find.find(str(tmp_path), CheckpointSettings()) == tmp_path


def test_a_revision_of_a_folder_is_refused_rather_than_ignored(tmp_path: Path) -> None:
    make_folder(tmp_path)
    with pytest.raises(ModelError, match="MODEL_REVISION"):
        find.find(str(tmp_path), CheckpointSettings(revision="v1"))


def test_a_cached_model_is_found_without_the_network(tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path)
    found = find.find("org/name", CheckpointSettings(cache_dir=str(tmp_path)))
    assert found == snapshot
    assert compute_revision(found) == COMMIT


def test_a_model_that_runpod_has_cached_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "RUNPOD_MODELS", tmp_path)
    assert find.find_runpod_cache("org/name") is None
    make_cache(tmp_path)
    assert find.find_runpod_cache("org/name") == tmp_path
    assert find.find_runpod_cache("org/other") is None


def test_a_pinned_revision_is_found_in_the_cache(tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path)
    settings = CheckpointSettings(cache_dir=str(tmp_path), revision=COMMIT)
    assert find.find("org/name", settings) == snapshot


def test_a_missing_path_is_not_taken_for_a_hub_id(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        find.find(str(tmp_path / "gone"), CheckpointSettings())


def test_the_token_is_not_in_the_settings_text() -> None:
    assert "hf_secret" not in repr(CheckpointSettings(hf_token="hf_secret"))  # noqa: S106 - made up


def test_the_full_models_preset_is_the_default() -> None:
    preset = PresetFile()
    assert (preset.steps, preset.guidance_scale, preset.area_px) == (30, 4.0, 1024 * 1024)
    assert preset.guided
