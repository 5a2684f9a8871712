"""The `Store` port in a directory, with signed links that the service itself serves.

An object is one file: a line of JSON (content type, metadata), then the body. It is written as a draft
and renamed, so that it is absent or whole whenever the process dies.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from retouch.errors import (
    LinkExpired,
    LinkInvalid,
    RouteNotFound,
    StorageError,
    StoreDenied,
    StoreUnavailable,
)
from retouch.storage.keys import is_result_key, require_key
from retouch.storage.port import StoredObject

SOURCE_LIFE_S = 30 * 24 * 3600
SWEEP_EVERY_S = 300
DRAFT_LIFE_S = 600
"""The writer of an older draft is dead: no operation is given that long."""

_MAX_HEADER_BYTES = 64 * 1024
_SECRET_BYTES = 32
LINK_QUERY = ("expires", "signature")
_LINK = re.compile(r"expires=(\d{1,12})&signature=([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class LinkedFile:
    """The file that a valid link opens, and for how many more seconds the link is valid."""

    body: bytes
    content_type: str
    left_s: int


def load_secret(folder: Path, configured: str) -> bytes:
    """Return `configured`, or if it is empty the secret kept in `folder`; a missing one is made.

    Raises:
        StorageError: the directory cannot be used.
    """
    if configured:
        return configured.encode()
    path = folder / "link_secret"
    with _map_errors():
        if not path.exists():
            _write(path, secrets.token_bytes(_SECRET_BYTES), drafts=folder / "drafts")
        return path.read_bytes()


class LocalStore:
    """A directory. Thread-safe, and several processes may share it.

    A file system has no time limits of its own, so `timeout_s` bounds nothing here.
    """

    name = "local"

    def __init__(
        self,
        folder: Path,
        *,
        secret: bytes,
        public_url: str,
        result_ttl_s: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Create the directory and sweep it. Without `public_url` links are paths, `/files/...`.

        Raises:
            StorageError: the directory cannot be used.
        """
        self._objects = folder.absolute() / "objects"
        self._drafts = folder.absolute() / "drafts"
        self._secret = secret
        self._public_url = public_url.rstrip("/")
        self._result_ttl_s = result_ttl_s
        self._clock = clock
        self._swept_at_s = clock()
        with _map_errors():
            for needed in (self._objects, self._drafts):
                needed.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sweep()

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:  # noqa: ARG002
        """Return the object or None."""
        with _map_errors():
            found = self._read(key, max_bytes)
            return None if found is None else StoredObject(found[0], found[1]["metadata"])

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        timeout_s: float,  # noqa: ARG002
    ) -> None:
        """Write a draft, flush it to the disk, rename it; sweep in the background once in a while."""
        header = json.dumps({"content_type": content_type, "metadata": dict(metadata)})
        content = header.encode() + b"\n", body
        with _map_errors():
            path = self._path(key)
            try:
                _write(path, *content, drafts=self._drafts)
            except FileNotFoundError:  # a sweep removed the directory while it was empty
                _write(path, *content, drafts=self._drafts)
        if self._clock() - self._swept_at_s >= SWEEP_EVERY_S:
            self._swept_at_s = self._clock()
            threading.Thread(target=self.sweep, name="sweep", daemon=True).start()

    def link(self, key: str, *, expires_in_s: int) -> str:
        """Sign a link, and keep the object for as long as the link is valid."""
        now_s = self._clock()
        expires = str(int(now_s) + expires_in_s)
        with _map_errors(), suppress(FileNotFoundError):
            os.utime(self._path(key), (now_s, now_s))
        query = urlencode({"expires": expires, "signature": self._sign(key, expires)})
        return f"{self._public_url}/files/{key}?{query}"

    def check(self, *, timeout_s: float) -> None:
        """Put, get and delete an object."""
        key = f"check/{secrets.token_hex(8)}"
        body = key.encode()
        self.put(key, body, content_type="text/plain", metadata={}, timeout_s=timeout_s)
        found = self.get(key, max_bytes=len(body), timeout_s=timeout_s)
        with _map_errors():
            self._path(key).unlink()
        if found is None or found.body != body:
            raise StorageError("LOCAL_STORE_DIR does not return what was stored")

    def open_link(self, key: str, query: str) -> LinkedFile:
        """Return the file of a link; `key` is decoded, `query` as in the URL.

        Raises:
            LinkInvalid: `link` did not make this link.
            LinkExpired: the link has expired.
            RouteNotFound: the object no longer exists.
            StorageError: the object cannot be read.
        """
        parts = _LINK.fullmatch(query)
        if not parts or not hmac.compare_digest(self._sign(key, parts[1]), parts[2]):
            raise LinkInvalid("the link is not valid")
        left_s = int(parts[1]) - int(self._clock())
        if left_s <= 0:
            raise LinkExpired("the link has expired")
        with _map_errors():
            found = self._read(key, None)
        if found is None:
            raise RouteNotFound("the file of this link no longer exists")
        body, header = found
        return LinkedFile(body, header["content_type"], left_s)

    def sweep(self) -> None:
        """Delete results whose links have expired, old sources, and drafts of dead writers."""
        now_s = self._clock()
        for path in _files(self._drafts):
            _delete_older(path, now_s - DRAFT_LIFE_S)
        for path in _files(self._objects):
            is_result = is_result_key(path.relative_to(self._objects).as_posix())
            _delete_older(path, now_s - (self._result_ttl_s if is_result else SOURCE_LIFE_S))

    def _path(self, key: str) -> Path:
        require_key(key)
        return self._objects / key

    def _read(self, key: str, max_bytes: int | None) -> tuple[bytes, dict[str, Any]] | None:
        try:
            file = self._path(key).open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return None
        with file:
            header = json.loads(file.readline(_MAX_HEADER_BYTES))
            texts = [header["content_type"], *header["metadata"].values()]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(key)
            size = os.fstat(file.fileno()).st_size - file.tell()
            if max_bytes is not None and size > max_bytes:
                raise StorageError(f"the stored object is over {max_bytes} bytes", key=key)
            return file.read(), header

    def _sign(self, key: str, expires: str) -> str:
        text = json.dumps(["retouch-link-2", key, expires])
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder`, and remove the directories that are empty."""
    for directory, _, names in os.walk(folder, topdown=False):
        yield from (Path(directory, name) for name in names)
        if Path(directory) != folder:
            with suppress(OSError):  # it is not empty
                Path(directory).rmdir()


def _delete_older(path: Path, moment_s: float) -> None:
    # Another process may sweep the same directory at the same time.
    with suppress(OSError):
        if path.lstat().st_mtime < moment_s:
            path.unlink()


def _write(path: Path, *parts: bytes, drafts: Path) -> None:
    """Write a file that only this user can read. It appears whole, and is on the disk on return."""
    for needed in (path.parent, drafts):
        needed.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=drafts)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(handle)  # or a power cut after the rename could leave half a body
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink()
        raise


@contextmanager
def _map_errors() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise StoreDenied("no permission in the local store; check LOCAL_STORE_DIR") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        fault = type(error).__name__
        raise StoreUnavailable(
            "the local store failed; check the disk of LOCAL_STORE_DIR", fault=fault
        ) from error
