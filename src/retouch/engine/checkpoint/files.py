"""The files of a checkpoint folder: check that they are complete, list and identify them."""

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


def require_complete(folder: Path) -> None:
    """Check that `folder` has every part of a known pipeline and no truncated weights file.

    Raises:
        ModelError: names the first fault.
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
            _require_complete_weights(path)


def list_weights(folder: Path) -> Iterator[Path]:
    """Yield the weights files of one part: the shards that its index names, else the only file.

    Variants in another precision (`model.fp16.safetensors`) are left out where there is a plain
    file, as the stock libraries do by default.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"), key=_is_variant)
    if indexes:
        shards = read_json(indexes[0]).get("weight_map")
        names = list(shards.values()) if isinstance(shards, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise ModelError(f"{folder.name}/{indexes[0].name} lists no weights files")
        yield from (folder / name for name in sorted(set(names)))
        return
    found = list(folder.glob("*.safetensors"))
    plain = [path for path in found if not _is_variant(path)] or found
    if len(plain) != 1:
        raise ModelError(f"{folder.name} has {len(plain)} weights files and no index")
    yield plain[0]


def _is_variant(path: Path) -> bool:
    return "." in path.name.partition(".safetensors")[0]


def _require_complete_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    name = f"{path.parent.name}/{path.name}"
    try:
        with safe_open(path, framework="np"):
            pass
    except FileNotFoundError:
        raise ModelError(f"{name} is missing") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{name} is damaged or truncated") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        ModelError: it is missing or is not a JSON object.
    """
    name = path.name if path.name == INDEX_FILE else f"{path.parent.name}/{path.name}"
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{name} is missing") from None
    except ValueError:
        raise ModelError(f"{name} is not valid JSON") from None
    if not isinstance(data, dict):
        raise ModelError(f"{name} is not a JSON object")
    return data


def compute_revision(folder: Path) -> str:
    """Return the commit of a hub snapshot, else 12 hex digits of a hash of the folder's content.

    Files over 64 MiB count by name and size only: hashing 54 GiB would take minutes.
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
