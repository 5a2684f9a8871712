import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.models.checkpoints import cut_short, make_folder

from retouch.engine.checkpoint import files
from retouch.errors import ModelError

LFS_POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345
"""


def test_a_complete_folder_passes(tmp_path: Path) -> None:
    files.require_complete(make_folder(tmp_path))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is not valid JSON"),
        (lambda f: (f / "model_index.json").write_text("[]"), "is not a JSON object"),
        (lambda f: (f / "model_index.json").write_text("{}"), "names the pipeline None"),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'),
            "names the pipeline FluxPipeline",
        ),
        (
            lambda f: (f / "scheduler" / "scheduler_config.json").unlink(),
            "scheduler/scheduler_config.json is missing",
        ),
        (
            lambda f: (f / "processor" / "tokenizer.json").write_text('{"model": '),
            "processor/tokenizer.json is not valid JSON",
        ),
        *(
            (
                lambda f, name=name: (f / name).write_text(LFS_POINTER),
                f"{name} is a Git LFS pointer, not the file: run `git lfs pull`",
            )
            for name in (
                "vae/model.safetensors",
                "processor/tokenizer.json",
                "tokenizer/merges.txt",
            )
        ),
        (lambda f: (f / "processor").rename(f / "p"), "the folder processor is missing"),
        (lambda f: (f / "vae" / "config.json").unlink(), "vae/config.json is missing"),
        (
            lambda f: (f / "vae" / "config.json").write_bytes(b"\xff"),
            "vae/config.json is not valid JSON",
        ),
        (lambda f: (f / "vae" / "model.safetensors").unlink(), "vae has 0 weights files"),
        (
            lambda f: (f / "vae" / "b.safetensors").write_bytes(b""),
            "vae has 2 weights files and no index",
        ),
        (
            lambda f: (f / "transformer" / "2.safetensors").unlink(),
            "transformer/2.safetensors is missing",
        ),
        (
            lambda f: cut_short(f / "transformer" / "2.safetensors"),
            "transformer/2.safetensors is damaged or truncated",
        ),
        (
            lambda f: (f / "text_encoder" / "model.safetensors").write_bytes(b""),
            "text_encoder/model.safetensors is damaged or truncated",
        ),
        *(
            (
                lambda f, text=text: next((f / "transformer").glob("*.index.json")).write_text(
                    text
                ),
                r"transformer/.*\.index\.json lists no weights files",
            )
            for text in (
                "{}",
                '{"weight_map": []}',
                '{"weight_map": {}}',
                '{"weight_map": {"a": 1}}',
            )
        ),
    ],
)
def test_a_damaged_folder_is_refused_with_its_fault(
    tmp_path: Path, damage: Callable[[Path], object], fault: str
) -> None:
    damage(make_folder(tmp_path))
    with pytest.raises(ModelError, match=fault):
        files.require_complete(tmp_path)


def test_variants_in_another_precision_are_left_out(tmp_path: Path) -> None:
    make_folder(tmp_path)
    index = next((tmp_path / "transformer").glob("*.index.json"))
    (index.parent / "a.fp16.safetensors.index.json").write_text('{"weight_map": {}}')
    (tmp_path / "vae" / "model.fp16.safetensors").write_bytes(b"")
    before = [files.list_weights(tmp_path / part) for part in files.WEIGHTED]
    names = [path.name for part in before for path in part]
    assert "model.fp16.safetensors" not in names
    files.require_complete(tmp_path)


def test_shards_of_a_variant_are_read_by_their_index(tmp_path: Path) -> None:
    """As `save_pretrained(variant="fp16", max_shard_size=...)` writes them."""
    transformer = make_folder(tmp_path) / "transformer"
    (transformer / "w.safetensors.index.json").unlink()
    for number in (1, 2):
        (transformer / f"{number}.safetensors").rename(transformer / f"w.fp16-{number}.safetensors")
    index = {"weight_map": {"1": "w.fp16-1.safetensors", "2": "w.fp16-2.safetensors"}}
    (transformer / "w.safetensors.index.fp16.json").write_text(json.dumps(index))
    names = [path.name for path in files.list_weights(transformer)]
    assert names == ["w.fp16-1.safetensors", "w.fp16-2.safetensors"]
    files.require_complete(tmp_path)


def test_a_variant_alone_is_taken(tmp_path: Path) -> None:
    vae = make_folder(tmp_path) / "vae"
    (vae / "model.safetensors").rename(vae / "model.fp16.safetensors")
    assert [path.name for path in files.list_weights(vae)] == ["model.fp16.safetensors"]


def test_a_folders_revision_is_that_of_its_content(tmp_path: Path) -> None:
    first = files.compute_revision(make_folder(tmp_path / "a"))
    assert first == files.compute_revision(make_folder(tmp_path / "b"))
    save_file({"a": np.ones(8)}, tmp_path / "b" / "vae" / "model.safetensors")
    assert first != files.compute_revision(tmp_path / "b")


def test_large_files_count_by_name_and_size_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_HASHED_BYTES", 2)
    first = files.compute_revision(make_folder(tmp_path))
    save_file({"a": np.ones(8)}, tmp_path / "vae" / "model.safetensors")
    assert first == files.compute_revision(tmp_path)
    save_file({"a": np.ones(9)}, tmp_path / "vae" / "model.safetensors")
    assert first != files.compute_revision(tmp_path)


def test_a_fingerprint_tells_files_of_one_size_apart(tmp_path: Path) -> None:
    content = np.random.default_rng(0).integers(0, 256, 6 << 20, dtype=np.uint8)
    path = tmp_path / "w.gguf"
    path.write_bytes(content.tobytes())
    first = files.fingerprint(path)
    assert files.fingerprint(path) == first

    content[-1] ^= 1
    path.write_bytes(content.tobytes())
    changed = files.fingerprint(path)
    path.write_bytes(b"short")
    assert len({first, changed, files.fingerprint(path)}) == 3
