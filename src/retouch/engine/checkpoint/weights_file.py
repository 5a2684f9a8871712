"""Find a file that holds a part's weights: on disk, in the hub cache, or by a download."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Self

from retouch.engine.adapters.source import PEFT_CONFIG, PEFT_FILE, SHARD
from retouch.engine.checkpoint import hub
from retouch.engine.checkpoint.find import CheckpointSettings, find_cache
from retouch.errors import ModelError

_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.(?:gguf|safetensors))")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileReference:
    """A path or a hub file `owner/repository/path`, and a revision or a SHA-256 that pins it."""

    name: str
    revision: str = ""
    sha256: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `name`, `name@revision` or `name@sha256:<64 hex digits>`.

        >>> FileReference.parse("a/b/c.gguf@v1")
        FileReference(name='a/b/c.gguf', revision='v1', sha256='')

        Raises:
            ModelError: the SHA-256 is not one.
        """
        if Path(text).expanduser().is_file():
            return cls(text)  # whatever characters its path has
        name, _, pin = text.rpartition("@") if "@" in text else (text, "", "")
        if not pin.startswith("sha256:"):
            return cls(name, revision=pin)
        sha256 = pin.removeprefix("sha256:").lower()
        if not _SHA256.fullmatch(sha256):
            raise ModelError(f"{text} is pinned by a SHA-256 that is not 64 hex digits")
        return cls(name, sha256=sha256)


def find_weights_file(
    text: str,
    *,
    setting: str,
    cache: Path | None = None,
    token: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> Path:
    """Return the file that `text`, the value of `setting`, names; `cache` is the hub cache to use.

    A SHA-256 is compared with the whole file's.

    Raises:
        ModelError: there is no such file, the hub refuses it, or it is not the one that is pinned.
    """
    reference = FileReference.parse(text)
    path = Path(reference.name).expanduser()
    if path.is_file():
        if reference.revision:
            raise ModelError(f"{setting}: a file has no revisions: pin it with @sha256:")
    elif found := _HUB_FILE.fullmatch(reference.name):
        repository, name = found.groups()
        download = partial(
            hub.download_file,
            repository,
            setting=setting,
            revision=reference.revision,
            cache=cache or find_cache(repository),
            token=token,
            progress=progress,
        )
        path = download(name)
        if PurePosixPath(name).name == PEFT_FILE:
            download(str(PurePosixPath(name).with_name(PEFT_CONFIG)))
    else:
        fault = f"there is no file {reference.name}; one on the hub is owner/repository/file"
        raise ModelError(f"{setting}: {fault}")
    if reference.sha256:
        _require_sha256(path, reference.sha256, setting, progress)
    return path


def _require_sha256(path: Path, pinned: str, setting: str, progress: Callable[[str], None]) -> None:
    progress(f"checking the SHA-256 of {path.name}")
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != pinned:
        raise ModelError(f"{setting}: {path.name} has the SHA-256 {actual}, not the pinned one")


def find_files(
    settings: CheckpointSettings, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Path]:
    """Return the files that hold a whole part's weights, by the part's name.

    Raises:
        ModelError: one cannot be found or downloaded, is a shard, or is not the one that is pinned.
    """
    named = {
        "transformer": ("TRANSFORMER_FILE", settings.transformer_file),
        "text_encoder": ("TEXT_ENCODER_FILE", settings.text_encoder_file),
    }
    for setting, text in named.values():
        if SHARD.search(FileReference.parse(text).name):
            raise ModelError(f"{setting}: {text} is one of several shards: join them in one file")
    return {
        part: find_weights_file(text, setting=setting, token=settings.hf_token, progress=progress)
        for part, (setting, text) in named.items()
        if text
    }
