"""A checkpoint folder's files: whether they are all there and whole, and what identifies them."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retouch.errors import ModelError

INDEX_FILE = "model_index.json"
PIPELINES = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
WEIGHTED = ("transformer", "vae", "text_encoder")
PARTS = (*WEIGHTED, "scheduler", "tokenizer", "processor")
MAX_HASHED_BYTES = 64 << 20
_COMMIT = re.compile(r"[0-9a-f]{40}")


def require_whole(folder: Path) -> None:
    """Check that `folder` has every part of a known pipeline and no weights file cut short.

    Raises:
        ModelError: with the first fault.
    """
    kind = read_json(folder / INDEX_FILE).get("_class_name")
    if kind not in PIPELINES:
        raise ModelError(
            f"{INDEX_FILE} names the pipeline {kind}, not one of {', '.join(PIPELINES)}"
        )
    for part in PARTS:
        if not (folder / part).is_dir():
            raise ModelError(f"the folder {part} is missing")
    for part in WEIGHTED:
        read_json(folder / part / "config.json")
        for path in list_weights(folder / part):
            _require_whole_weights(path)


def list_weights(folder: Path) -> Iterator[Path]:
    """Yield the weights files of one part: the shards its index names, else the one there is."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = set(read_json(indexes[0]).get("weight_map", {}).values())
        yield from (folder / name for name in sorted(names))
    else:
        found = sorted(folder.glob("*.safetensors"))
        if len(found) != 1:
            raise ModelError(f"{folder.name} has {len(found)} weights files and no index")
        yield found[0]


def _require_whole_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    name = f"{path.parent.name}/{path.name}"
    try:
        with safe_open(path, framework="np"):
            pass
    except FileNotFoundError:
        raise ModelError(f"{name} is missing") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{name} is damaged or cut short") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        ModelError: it is missing or no JSON.
    """
    name = path.name if path.name == INDEX_FILE else f"{path.parent.name}/{path.name}"
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{name} is missing") from None
    except ValueError:
        raise ModelError(f"{name} is not JSON") from None
    return data if isinstance(data, dict) else {}


def compute_revision(folder: Path) -> str:
    """Return the commit of a hub snapshot, else 12 digits that change when the folder's content does.

    Of files over 64 MiB only name and size count: hashing 54 GiB would take minutes.
    """
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return folder.name
    digest = hashlib.sha256()
    parts = (path for part in PARTS for path in (folder / part).rglob("*") if path.is_file())
    for path in sorted([folder / INDEX_FILE, *parts]):
        size_bytes = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size_bytes}\0".encode())
        if size_bytes <= MAX_HASHED_BYTES:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
