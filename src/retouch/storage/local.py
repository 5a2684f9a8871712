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
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from retouch.storage.keys import disposition, is_source_key, require_key
from retouch.storage.local_files import delete_old, map_errors, write
from retouch.storage.port import StoredObject

SOURCE_LIFE_S = 30 * 24 * 3600
SWEEP_EVERY_S = 300
DRAFT_LIFE_S = 600
"""The writer of an older draft is dead: no operation is given that long."""

MIN_FREE_BYTES = 64 << 20
_KEPT_OF_A_FULL_STORE = 0.9  # so that not every further object starts a sweep
_SWEPT_AFTER = 0.1  # of its size written by one process: it does not see what others write
_MAX_HEADER_BYTES = 64 * 1024
_SECRET_BYTES = 32
LINK_QUERY = ("expires", "signature")
_LINK = re.compile(r"expires=(\d{1,12})&signature=([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class LinkedFile:
    """The file that a valid link opens, and for how many more seconds the link is valid."""

    body: bytes
    content_type: str
    disposition: str
    left_s: int


def load_secret(folder: Path, configured: str) -> bytes:
    """Return `configured`, or if it is empty the secret kept in `folder`; a missing one is made.

    Raises:
        StorageError: the directory cannot be used.
    """
    if configured:
        return configured.encode()
    path = folder / "link_secret"
    with map_errors():
        if not path.exists():
            made = folder / f"{path.name}-{secrets.token_hex(8)}"
            write(made, secrets.token_bytes(_SECRET_BYTES), drafts=folder / "drafts")
            with suppress(FileExistsError):  # another process was first: its secret counts
                os.link(made, path)
            made.unlink()
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
        max_bytes: int = 10 << 30,
        disposition: str = "inline",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Create the directory and sweep it. Without `public_url` links are paths, `/files/...`.

        Above `max_bytes` the oldest objects are deleted. `disposition` is `inline` for links that show
        the image, `attachment` for links that save it.

        Raises:
            StorageError: the directory cannot be used.
        """
        self._objects = folder.absolute() / "objects"
        self._drafts = folder.absolute() / "drafts"
        self._secret = secret
        self._public_url = public_url.rstrip("/")
        self._result_ttl_s = result_ttl_s
        self._max_bytes = max_bytes
        self._disposition = disposition
        self._clock = clock
        self._sweeping = threading.Lock()
        self._swept_at_s = clock()
        self._size_bytes = 0  # since the last sweep an estimate: a replaced object counts twice
        self._written_bytes = 0  # since then, by this process
        with map_errors():
            for needed in (self._objects, self._drafts):
                needed.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.sweep()

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:  # noqa: ARG002
        """Return the object or None."""
        with map_errors():
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
        with map_errors():
            write(self._path(key), *content, drafts=self._drafts)
        self._size_bytes += len(body)
        self._written_bytes += len(body)
        is_due = self._clock() - self._swept_at_s >= SWEEP_EVERY_S
        is_due |= self._written_bytes > self._max_bytes * _SWEPT_AFTER
        if is_due or self._size_bytes > self._max_bytes:
            self._swept_at_s, self._written_bytes = self._clock(), 0
            threading.Thread(target=self.sweep, name="sweep", daemon=True).start()

    def link(self, key: str, *, expires_in_s: int) -> str:
        """Sign a link, and keep the object for as long as the link is valid."""
        now_s = self._clock()
        expires = str(int(now_s) + expires_in_s)
        with map_errors(), suppress(FileNotFoundError):
            os.utime(self._path(key), (now_s, now_s))
        query = urlencode({"expires": expires, "signature": self._sign(key, expires)})
        return f"{self._public_url}/files/{key}?{query}"

    def list_keys(self, prefix: str, *, max_keys: int, timeout_s: float) -> list[str]:  # noqa: ARG002
        """Return the keys that begin with `prefix`, a directory with its slash."""
        folder = self._path(prefix.removesuffix("/"))
        with map_errors():
            files = (Path(where, name) for where, _, names in os.walk(folder) for name in names)
            keys = [path.relative_to(self._objects).as_posix() for path in files]
        return sorted(keys)[:max_keys]

    def check(self, *, timeout_s: float) -> None:
        """Put, get and delete an object."""
        key = f"check/{secrets.token_hex(8)}"
        body = key.encode()
        self.put(key, body, content_type="text/plain", metadata={}, timeout_s=timeout_s)
        found = self.get(key, max_bytes=len(body), timeout_s=timeout_s)
        with map_errors():
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
        with map_errors():
            found = self._read(key, None)
        if found is None:
            raise RouteNotFound("the file of this link no longer exists")
        body, header = found
        return LinkedFile(body, header["content_type"], disposition(key, self._disposition), left_s)

    def sweep(self) -> None:
        """Delete what is too old, and then the oldest objects until the rest fits.

        Too old are results whose links have expired, their index, sources after a month, and drafts of
        dead writers. One sweep runs at a time; another returns at once.
        """
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            now_s = self._clock()
            delete_old(self._drafts, lambda _: now_s - DRAFT_LIFE_S)
            kept = delete_old(self._objects, lambda path: now_s - self._life_s(path))
            size_bytes = sum(size for _, size, _ in kept)
            if size_bytes > self._max_bytes:
                for _, size, path in sorted(kept):
                    if size_bytes <= self._max_bytes * _KEPT_OF_A_FULL_STORE:
                        break
                    path.unlink(missing_ok=True)
                    size_bytes -= size
            self._size_bytes = size_bytes
        finally:
            self._sweeping.release()

    def require_space(self) -> None:
        """Require room on the disk for another object. Cheap enough for a health check.

        Raises:
            StoreUnavailable: the disk is full.
        """
        with map_errors():
            free_bytes = shutil.disk_usage(self._objects).free
        if free_bytes < MIN_FREE_BYTES:
            raise StoreUnavailable("the disk of LOCAL_STORE_DIR is full", free_bytes=free_bytes)

    def _life_s(self, path: Path) -> float:
        is_source = is_source_key(path.relative_to(self._objects).as_posix())
        return SOURCE_LIFE_S if is_source else self._result_ttl_s

    def _path(self, key: str) -> Path:
        require_key(key)
        path = self._objects / key
        for part in (path, *path.parents):
            if part == self._objects:  # the operator may have linked this one, or one above it
                break
            if part.is_symlink():  # else who can write here could have files elsewhere served
                raise StoreDenied("a symbolic link in LOCAL_STORE_DIR is not followed", key=key)
        return path

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
