"""Checkpoint folders and a hub cache of the right form, with weights of a few bytes."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from retouch.engine.checkpoint import files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_folder(folder: Path) -> Path:
    """Make a folder of the right form, with weights of a few bytes."""
    for part in files.PARTS:
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "model_index.json").write_text('{"_class_name": "QwenImageEditPipeline"}')
    for part in ("vae", "text_encoder"):
        save_file({"a": np.zeros(8)}, folder / part / "model.safetensors")
    for number in (1, 2):
        save_file({str(number): np.zeros(8)}, folder / "transformer" / f"{number}.safetensors")
    index = {"weight_map": {"1": "1.safetensors", "2": "2.safetensors"}}
    (folder / "transformer" / "w.safetensors.index.json").write_text(json.dumps(index))
    return folder


def make_cache(root: Path) -> Path:
    """Make a hub cache that holds org/name, and return the snapshot's folder."""
    repository = root / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return make_folder(repository / "snapshots" / COMMIT)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
