import hashlib
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.models.checkpoints import COMMIT

from retouch.engine.checkpoint.find import CheckpointSettings
from retouch.engine.checkpoint.weights_file import FileReference, find_files, find_weights_file
from retouch.errors import ModelError

SHA = hashlib.sha256(b"weights").hexdigest()
HUB_FILE = "org/name-GGUF/q4/model-Q4_K_M.gguf"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    repository = tmp_path / "hub" / "models--org--name-GGUF"
    file = repository / "snapshots" / COMMIT / "q4" / "model-Q4_K_M.gguf"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


def find(text: str, cache: Path | None = None) -> Path:
    return find_weights_file(text, setting="TRANSFORMER_FILE", cache=cache)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (HUB_FILE, FileReference(HUB_FILE)),
        (f"{HUB_FILE}@v1", FileReference(HUB_FILE, revision="v1")),
        (f"{HUB_FILE}@sha256:{SHA.upper()}", FileReference(HUB_FILE, sha256=SHA)),
    ],
)
def test_a_file_may_be_pinned_by_revision_or_hash(text: str, reference: FileReference) -> None:
    assert FileReference.parse(text) == reference


def test_a_file_on_disk_is_taken_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a@b.gguf"
    path.write_bytes(b"weights")

    assert find(str(path)) == path
    assert find(f"{path}@sha256:{SHA}") == path


@pytest.mark.parametrize("pin", ["", f"@{COMMIT}", f"@sha256:{SHA}"])
def test_a_hub_file_is_taken_from_the_cache(cache: Path, pin: str) -> None:
    assert find(HUB_FILE + pin, cache).read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("pin", "fault"),
    [
        ("@sha256:" + "0" * 64, f"has the SHA-256 {SHA}, not the pinned one"),
        ("@sha256:123", "not 64 hex digits"),
        ("@v1", "a file has no revisions"),
    ],
)
def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path, pin: str, fault: str) -> None:
    (tmp_path / "w.gguf").write_bytes(b"weights")
    with pytest.raises(ModelError, match=fault):
        find(f"{tmp_path}/w.gguf{pin}")


@pytest.mark.parametrize("name", ["gone.gguf", "org/name", "/gone/w.safetensors", "org/name/w.bin"])
def test_a_name_of_no_file_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="TRANSFORMER_FILE: there is no file"):
        find(name)


def test_a_hub_that_cannot_be_reached_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="the download failed"):
        find(HUB_FILE, tmp_path)


@pytest.mark.parametrize("name", ["w-00002-of-00005.safetensors", "w-00001-of-00003.gguf@v1"])
def test_one_shard_of_a_part_is_refused_before_it_is_downloaded(name: str) -> None:
    with pytest.raises(ModelError, match=f"TRANSFORMER_FILE: org/name/{name} is one of several"):
        find_files(CheckpointSettings(transformer_file=f"org/name/{name}"))


def test_each_part_has_the_file_that_its_setting_names(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.safetensors"):
        (tmp_path / name).touch()
    both = CheckpointSettings(
        transformer_file=f"{tmp_path}/a.gguf", text_encoder_file=f"{tmp_path}/b.safetensors"
    )

    assert find_files(CheckpointSettings()) == {}
    assert {part: path.name for part, path in find_files(both).items()} == {
        "transformer": "a.gguf",
        "text_encoder": "b.safetensors",
    }
    assert both.weighted == ("vae",)
