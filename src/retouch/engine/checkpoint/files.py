"""The files of a checkpoint folder: check that they are complete, list and identify them."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from retouch.engine.header_limit import MAX_HEADER_BYTES, has_long_header
from retouch.errors import ModelError

INDEX_FILE = "model_index.json"
PIPELINES = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")
WEIGHTED = ("transformer", "vae", "text_encoder")
PARTS = (*WEIGHTED, "scheduler", "tokenizer", "processor")
REQUIRED = (*(f"{part}/config.json" for part in WEIGHTED), "scheduler/scheduler_config.json")
MAX_HASHED_BYTES = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 64, 64 << 10
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def reason_of(error: Exception) -> str:
    """Return an error's first line: the loaders' messages have many, and the log needs one."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Raise what the block raises as a ModelError that names the file or folder `name`."""
    try:
        yield
    except Exception as error:
        raise ModelError(f"{name} cannot be used: {reason_of(error)}") from error


def require_complete(folder: Path, weighted: Collection[str] = WEIGHTED) -> None:
    """Check that `folder` has every part of a known pipeline, readable and without truncated weights.

    Weights are needed only of the parts `weighted`.

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
    found = {path for part in PARTS for path in (folder / part).glob("*.json")}
    for path in sorted(found | {folder / name for name in REQUIRED}):
        read_json(path)
    for path in (folder / part / "merges.txt" for part in ("tokenizer", "processor")):
        if path.exists():
            _require_content(path)
    for part in weighted:
        for path in list_weights(folder / part):
            require_complete_weights(path)


def list_weights(folder: Path) -> list[Path]:
    """Return the weights files of one part: the shards that its index lists, else the only file.

    Raises:
        ModelError: the index is malformed, or there is not exactly one file and no index.
    """
    names = {path.name for path in folder.iterdir() if ".safetensors" in path.name}
    chosen = choose_weights(names)
    if index := next((name for name in chosen if name.endswith(".json")), None):
        shards = read_json(folder / index).get("weight_map")
        listed = list(shards.values()) if isinstance(shards, dict) else []
        if not listed or not all(isinstance(name, str) for name in listed):
            raise ModelError(f"{folder.name}/{index} lists no weights files")
        return [folder / name for name in sorted(set(listed))]
    if len(chosen) != 1:
        raise ModelError(f"{folder.name} has {len(chosen)} weights files and no index")
    return [folder / chosen[0]]


def choose_weights(names: Iterable[str]) -> list[str]:
    """Choose among a part's weights files and indexes: the plain ones, else those of a variant.

    A variant has another precision and its name a dot more, as diffusers and transformers write
    it. Shards stay beside their index.

    >>> choose_weights(["model.fp16.safetensors", "model.safetensors"])
    ['model.safetensors']
    >>> choose_weights(["m.safetensors.index.fp16.json", "m.fp16-00001-of-00001.safetensors"])
    ['m.fp16-00001-of-00001.safetensors', 'm.safetensors.index.fp16.json']
    """

    def is_variant(name: str) -> bool:
        stem, _, rest = name.partition(".safetensors")
        return "." in stem or rest.removesuffix(".json") not in {"", ".index"}

    found = sorted(names)
    return [name for name in found if not is_variant(name)] or found


def require_complete_weights(path: Path) -> None:
    """Check that a safetensors file is whole: a sound header, and as long as it says.

    Raises:
        ModelError: names the file.
    """
    from safetensors import SafetensorError, safe_open

    _require_content(path)
    try:
        if has_long_header(path):
            raise ModelError(f"{_name(path)} has a header of over {MAX_HEADER_BYTES} bytes")
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{_name(path)} is damaged or truncated, or not safetensors") from error


def _require_content(path: Path) -> None:
    """Check that a file is there, and not the pointer that Git LFS leaves in its place."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError as error:
        fault = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise ModelError(f"{_name(path)} {fault}") from error
    if start == _LFS_POINTER:
        raise ModelError(
            f"{_name(path)} is a Git LFS pointer, not the file: run `git lfs pull` in its repository"
        )


def _name(path: PurePath) -> str:
    return path.name if path.name == INDEX_FILE else "/".join(path.parts[-2:])


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint.

    Raises:
        ModelError: it is missing, a Git LFS pointer or not a JSON object.
    """
    _require_content(path)
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ModelError(f"{_name(path)} is not valid JSON") from None
    if not isinstance(data, dict):
        raise ModelError(f"{_name(path)} is not a JSON object")
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


def fingerprint(path: Path) -> str:
    """Return 12 hex digits of a hash of a large file's size and of 64 samples of 64 KiB."""
    size_bytes = path.stat().st_size
    digest = hashlib.sha256(str(size_bytes).encode())
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(number * max(0, size_bytes - _SAMPLE_BYTES) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:12]
