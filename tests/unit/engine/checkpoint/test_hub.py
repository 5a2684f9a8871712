import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.models.checkpoints import COMMIT, cut_short, make_cache, make_folder

from retouch.engine.checkpoint import find, hub
from retouch.errors import ModelError

NEWER = "f" * 40


def snapshot_in(cache: Path, *, revision: str = "", model_id: str = "org/name") -> Path | None:
    return hub.find_snapshot(model_id, cache, revision=revision, progress=lambda _: None)


def test_a_cache_without_refs_has_its_complete_snapshot(tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path)
    shutil.rmtree(tmp_path / "models--org--name" / "refs")
    reported: list[str] = []
    found = hub.find_snapshot("org/name", tmp_path, revision="", progress=reported.append)
    assert found == snapshot
    assert reported == [f"using the cached snapshot {COMMIT[:12]}, the newest complete one"]


@pytest.mark.parametrize(
    "text", [f"{COMMIT}\n".encode(), b"", NEWER.encode(), b"\xef\xbb\xbf", b"\xff\xfe\x00"]
)
def test_an_untidy_ref_does_not_hide_a_complete_snapshot(tmp_path: Path, text: bytes) -> None:
    snapshot = make_cache(tmp_path)
    (tmp_path / "models--org--name" / "refs" / "main").write_bytes(text)
    assert snapshot_in(tmp_path) == snapshot


def test_a_broken_newer_snapshot_does_not_hide_a_complete_one(tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path)
    newer = snapshot.parent / NEWER
    newer.mkdir()
    shutil.copy(snapshot / "model_index.json", newer)
    (tmp_path / "models--org--name" / "refs" / "main").write_text(NEWER)
    reported: list[str] = []
    found = hub.find_snapshot("org/name", tmp_path, revision="", progress=reported.append)
    assert found == snapshot
    assert "ffffffffffff is not used: the folder transformer is missing" in reported[0]
    assert COMMIT[:12] in reported[1]


def test_the_newest_complete_snapshot_is_taken_without_a_ref(tmp_path: Path) -> None:
    older = make_cache(tmp_path)
    newer = make_folder(older.parent / NEWER)
    shutil.rmtree(tmp_path / "models--org--name" / "refs")
    os.utime(older, (1, 1))
    assert snapshot_in(tmp_path) == newer


def test_a_revision_asked_for_is_never_replaced_by_another(tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path)
    (tmp_path / "models--org--name" / "refs" / "v1").write_text(f"{COMMIT}\n")
    assert snapshot_in(tmp_path, revision="v1") == snapshot
    assert snapshot_in(tmp_path, revision=COMMIT) == snapshot
    assert snapshot_in(tmp_path, revision=NEWER) is None
    assert snapshot_in(tmp_path, revision="v2") is None


def test_hub_ids_have_no_letter_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make_cache(tmp_path)
    assert snapshot_in(tmp_path, model_id="Org/Name") == snapshot
    monkeypatch.setattr(find, "RUNPOD_MODELS", tmp_path)
    assert find.find_runpod_cache("ORG/name") == tmp_path


def test_an_incomplete_snapshot_alone_is_not_used(tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path)
    cut_short(snapshot / "transformer" / "2.safetensors")
    assert snapshot_in(tmp_path) is None


SMALL = ["model_index.json", "retouch_preset.json", "vae/config.json", "processor/merges.txt"]


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        (["vae/m.safetensors", "vae/m.fp16.safetensors"], ["vae/m.safetensors"]),
        (["vae/m.fp16.safetensors"], ["vae/m.fp16.safetensors"]),
        (
            ["vae/m.safetensors.index.fp16.json", "vae/m.fp16-00001-of-00001.safetensors"],
            ["vae/m.safetensors.index.fp16.json", "vae/m.fp16-00001-of-00001.safetensors"],
        ),
        (
            [
                "vae/m.safetensors.index.json",
                "vae/m-00001-of-00001.safetensors",
                "vae/m.safetensors.index.fp16.json",
            ],
            ["vae/m.safetensors.index.json", "vae/m-00001-of-00001.safetensors"],
        ),
        (["vae/m.bin", "other/m.safetensors", "README.md", "vae/deep/m.safetensors"], []),
    ],
)
def test_a_variant_is_downloaded_only_where_there_is_nothing_else(
    weights: list[str], chosen: list[str]
) -> None:
    assert sorted(hub.choose_files([*SMALL, *weights])) == sorted([*SMALL, *chosen])


@pytest.mark.parametrize(
    ("status", "code", "revision", "advice"),
    [
        (401, "", "", "no such model, or it is private: check MODEL_ID"),
        (404, "RepoNotFound", "", "no such model, or it is private: check MODEL_ID"),
        (404, "RepoNotFound", "v1", "no such model, or it is private: check MODEL_ID"),
        (404, "RevisionNotFound", "v1", "no revision v1 of it: check MODEL_REVISION"),
        (404, "EntryNotFound", "", "no such file: check MODEL_ID"),
        (403, "GatedRepo", "", "accept the model's terms on its page, and set HF_TOKEN"),
        (401, "GatedRepo", "", "accept the model's terms on its page, and set HF_TOKEN"),
        (403, "", "", "set HF_TOKEN to a token that may read it"),
        (429, "", "", "limits requests \\(429\\): try again later, set HF_TOKEN"),
        (503, "", "", "fails \\(503\\): try again later, or set HF_ENDPOINT"),
    ],
)
def test_every_error_of_the_hub_says_what_to_do(
    status: int, code: str, revision: str, advice: str
) -> None:
    response = SimpleNamespace(status_code=status, headers={"X-Error-Code": code})
    with pytest.raises(ModelError, match=advice):
        raise ModelError(hub.explain(SimpleNamespace(response=response), revision))


def test_a_file_of_the_hub_is_named_by_its_own_setting() -> None:
    response = SimpleNamespace(status_code=404, headers={"X-Error-Code": "RevisionNotFound"})
    advice = hub.explain(SimpleNamespace(response=response), "v1", "TRANSFORMER_FILE")
    assert advice == "the hub has no revision v1 of it: check TRANSFORMER_FILE"


def test_a_model_larger_than_memory_is_not_downloaded_for_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "measure_host", lambda: 16_000_000_000)
    monkeypatch.setattr(hub, "find_device", lambda: SimpleNamespace(type="cuda"))
    hub.require_memory(57_700_000_000)  # it streams
    monkeypatch.setattr(hub, "find_device", lambda: SimpleNamespace(type="cpu"))
    hub.require_memory(16_000_000_000)
    with pytest.raises(ModelError, match=r"57\.7 GB do not fit .* memory of 16\.0 GB; MODEL_ID="):
        hub.require_memory(57_700_000_000)


@pytest.mark.parametrize(("quantization", "packed"), [("auto", False), ("nf4", True)])
def test_weights_that_are_packed_may_be_larger_than_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quantization: str, packed: bool
) -> None:
    asked = {}

    def download(_model_id: str, **options: object) -> Path:
        asked.update(options)
        return make_folder(tmp_path / "downloaded")

    monkeypatch.setattr(hub, "download", download)
    settings = find.CheckpointSettings(cache_dir=str(tmp_path), quantization=quantization)
    find.find("org/name", settings)
    assert asked["packed"] is packed


def test_a_disk_too_small_for_what_is_missing_ends_the_start_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = make_cache(tmp_path).parent.parent / "blobs"
    blobs.mkdir(exist_ok=True)
    (blobs / "a.incomplete").write_bytes(bytes(1 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    hub.require_disk("org/name", tmp_path, (1 << 30) + (1 << 20))
    hub.require_disk("org/name", tmp_path / "new" / "cache", 1 << 30)
    with pytest.raises(ModelError, match=r"57\.7 GB are missing and 1\.1 GB are free .*HF_HOME"):
        hub.require_disk("org/name", tmp_path, 57_700_000_000)
