"""Checkpoints of the Hugging Face hub: complete snapshots in a cache, and downloads."""

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Any

from retouch.engine.checkpoint.download_progress import make_line_bar
from retouch.engine.checkpoint.files import (
    INDEX_FILE,
    PARTS,
    WEIGHTED,
    choose_weights,
    reason_of,
    require_complete,
)
from retouch.engine.memory.plan import GIB
from retouch.engine.memory.probe import find_device, measure_host
from retouch.engine.preset import PRESET_FILE
from retouch.errors import ModelError

_SMALL_FILES = ("json", "txt", "jinja")
_ELSEWHERE = "set HF_ENDPOINT to a mirror, or MODEL_ID to a directory"


def find_repositories(model_id: str, cache: Path) -> Iterator[Path]:
    """Yield the directories of `model_id` in a hub cache. Hub ids ignore the case of letters."""
    name = f"models--{model_id.replace('/', '--')}".casefold()
    if cache.is_dir():
        yield from (path for path in cache.iterdir() if path.name.casefold() == name)


def find_snapshot(
    model_id: str,
    cache: Path,
    *,
    revision: str,
    progress: Callable[[str], None],
    weighted: Collection[str] = WEIGHTED,
) -> Path | None:
    """Return the snapshot in a hub cache that `revision` names, with weights of `weighted`, or None.

    Without a revision the one of `main` comes first, then the newest: caches are copied without
    their `refs`, and an interrupted download of a newer snapshot must not hide a complete one.
    """
    for repository in find_repositories(model_id, cache):
        reference = repository / "refs" / (revision or "main")
        commit = revision
        if reference.is_file():  # whatever wrote it: an unreadable one is none
            commit = reference.read_text(encoding="utf-8-sig", errors="replace").strip()
        snapshots = [path for path in (repository / "snapshots").glob("*") if path.is_dir()]
        snapshots.sort(key=lambda path: (path.name == commit, path.stat().st_mtime), reverse=True)
        for snapshot in snapshots:
            if revision and snapshot.name != commit:
                break
            try:
                require_complete(snapshot, weighted)
            except ModelError as error:
                progress(f"the cached snapshot {snapshot.name[:12]} is not used: {error.message}")
                continue
            if snapshot.name != commit:
                progress(f"using the cached snapshot {snapshot.name[:12]}, the newest complete one")
            return snapshot
    return None


def download(
    model_id: str,
    *,
    revision: str,
    cache: Path,
    token: str,
    progress: Callable[[str], None],
    weighted: Collection[str] = WEIGHTED,
    packed: bool = False,
) -> Path:
    """Download `model_id` with the weights of `weighted` into a hub cache; return the snapshot.

    Weights that are to be `packed` take less memory than their files.

    Raises:
        ModelError: the hub refuses or cannot be reached, or disk or memory have too little room; the
            message says what to do.
    """
    from huggingface_hub import HfApi, snapshot_download

    with explaining("MODEL_ID", revision):
        api = HfApi(token=token or None)
        commit = api.model_info(model_id, revision=revision or "main").sha
        tree = api.list_repo_tree(model_id, recursive=True, revision=commit)
        sizes = {item.path: getattr(item, "size", None) or 0 for item in tree}
        needed = choose_files(sizes, weighted)
        size_bytes = sum(sizes[name] for name in needed)
        if not packed:
            require_memory(size_bytes)
        gib = size_bytes / GIB
        progress(f"downloading {model_id}, {gib:.1f} GiB, to {cache}; to avoid it, set MODEL_ID")
        missing = _find_missing(needed, model_id, cache, commit)
        require_disk(model_id, cache, sum(sizes[name] for name in missing))
        return Path(
            snapshot_download(
                model_id,
                revision=revision or None,
                cache_dir=cache,
                token=token or None,
                allow_patterns=needed,
                tqdm_class=make_line_bar(progress),
            )
        )


def _find_missing(names: list[str], model_id: str, cache: Path, commit: str | None) -> list[str]:
    from huggingface_hub import try_to_load_from_cache

    find = partial(try_to_load_from_cache, model_id, cache_dir=cache, revision=commit)
    return [name for name in names if not find(name)]


def require_memory(size_bytes: int) -> None:
    """Without a GPU, require host memory for weights of this size, before an hour of downloading.

    Raises:
        ModelError: there is too little.
    """
    if (free_bytes := measure_host()) < size_bytes and find_device().type == "cpu":
        raise ModelError(
            f"torch finds no GPU, and the weights' {size_bytes / 1e9:.1f} GB do not fit the host's free "
            f"memory of {free_bytes / 1e9:.1f} GB; MODEL_ID=src/retouch/demo/checkpoint is small"
        )


def require_disk(model_id: str, cache: Path, missing_bytes: int) -> None:
    """Require room in a hub cache for the files that are missing, before an hour of downloading.

    Raises:
        ModelError: there is too little.
    """
    for repository in find_repositories(model_id, cache):
        begun = (repository / "blobs").glob("*.incomplete")
        missing_bytes -= sum(512 * path.stat().st_blocks for path in begun)  # it may be sparse
    nearest = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free_bytes = shutil.disk_usage(nearest).free
    if missing_bytes > free_bytes:
        raise ModelError(
            f"{missing_bytes / 1e9:.1f} GB are missing and {free_bytes / 1e9:.1f} GB are free in {cache}: "
            "enlarge that disk, set HF_HOME to a folder on another, or MODEL_ID to a directory"
        )


def download_file(
    repository: str,
    name: str,
    *,
    setting: str,
    revision: str,
    cache: Path,
    token: str,
    progress: Callable[[str], None],
) -> Path:
    """Return one file of a repository from a hub cache, downloaded if it is not there.

    Raises:
        ModelError: the hub refuses or cannot be reached; the message says what to do.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, cache_dir=cache, revision=revision or None)
    if isinstance(found, str):
        return Path(found)
    with explaining(setting, revision):
        progress(
            f"downloading {name} of {repository} to {cache}; to avoid it, set {setting} to a file"
        )
        return Path(
            hf_hub_download(
                repository,
                name,
                revision=revision or None,
                cache_dir=cache,
                token=token or None,
                tqdm_class=make_line_bar(progress),
            )
        )


@contextmanager
def explaining(setting: str, revision: str) -> Iterator[None]:
    """Raise what the hub library raises in the block as a ModelError that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        yield
    except ModelError:
        raise
    except HFValidationError:
        raise ModelError("no such directory or hub id; for one file set TRANSFORMER_FILE") from None
    except HfHubHTTPError as error:
        raise ModelError(explain(error, revision, setting)) from error
    except Exception as error:  # its HTTP client's errors, offline mode, a full disk
        raise ModelError(
            f"it is not cached completely, and the download failed ({reason_of(error)}): check the network, or "
            f"{_ELSEWHERE}"
        ) from error


def choose_files(names: Any, weighted: Collection[str] = WEIGHTED) -> list[str]:
    """Choose the files that the engine needs: small files, and weights of `weighted` in one precision."""
    chosen = []
    for part in PARTS:
        inside = [path for path in map(PurePosixPath, names) if str(path.parent) == part]
        weights = [path.name for path in inside if ".safetensors" in path.name]
        chosen += [
            f"{part}/{path.name}"
            for path in inside
            if path.name not in weights and path.suffix[1:] in _SMALL_FILES
        ]
        if part in weighted:
            chosen += [f"{part}/{name}" for name in choose_weights(weights)]
    return [name for name in (INDEX_FILE, PRESET_FILE) if name in names] + chosen


def explain(error: Any, revision: str, setting: str = "MODEL_ID") -> str:
    """Say what the hub's HTTP error means and what to do about it."""
    status = error.response.status_code
    code = error.response.headers.get("X-Error-Code", "")
    if status == HTTPStatus.NOT_FOUND and (code == "RevisionNotFound" or (revision and not code)):
        named = "MODEL_REVISION" if setting == "MODEL_ID" else setting
        return f"the hub has no revision {revision} of it: check {named}"
    if code == "EntryNotFound":
        return f"the hub's repository has no such file: check {setting}"
    if status == HTTPStatus.FORBIDDEN or code == "GatedRepo":
        return (
            "the hub denies access: accept the model's terms on its page, and set HF_TOKEN to a token "
            "that may read it"
        )
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND}:
        return (
            f"the hub has no such model, or it is private: check {setting}, and for a private model set "
            "HF_TOKEN to a token that may read it"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return f"the hub limits requests (429): try again later, set HF_TOKEN, or {_ELSEWHERE}"
    return f"the hub fails ({status}): try again later, or {_ELSEWHERE}"
