from pathlib import Path

from support.models.checkpoints import make_folder

from retouch.engine.checkpoint import load
from retouch.engine.checkpoint.files import compute_revision, fingerprint


def test_the_revision_names_each_file_and_how_it_is_read(tmp_path: Path) -> None:
    folder, file = make_folder(tmp_path / "model"), tmp_path / "w.gguf"
    file.write_bytes(b"weights")
    plain, mark = compute_revision(folder), fingerprint(file)

    assert load.describe_revision(folder, {}, "") == plain
    assert load.describe_revision(folder, {"transformer": file}, "") == f"{plain}+{mark}"
    assert load.describe_revision(folder, {"transformer": file}, "2511") == f"{plain}+{mark}+2511"
