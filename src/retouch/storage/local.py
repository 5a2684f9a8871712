"""The `Store` port in a folder, with signed links that the service itself serves.

One object is one file: a line of JSON (content type, metadata), then the body. One rename makes it
absent or whole, whenever the process dies.
"""

import hashlib
import hmac
import json
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from retouch.errors import (
    LinkExpired,
    LinkInvalid,
    RouteNotFound,
    StorageError,
    StoreDenied,
    StoreUnavailable,
)
from retouch.storage.keys import harmless_name, is_key, require_key, require_link
from retouch.storage.port import StoredObject

SOURCE_LIFE_S = 30 * 24 * 3600
SWEEP_EVERY_S = 300
LEFTOVER_AFTER_S = 600
"""A temporary file this old has lost its writer: no operation is given that long."""

_MAX_HEADER_BYTES = 64 * 1024
_SECRET_BYTES = 32
LINK_QUERY = ("expires", "type", "name", "signature")
_MAX_QUERY_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class LinkedFile:
    """What a valid link opens, and for how many seconds more."""

    body: bytes
    content_type: str
    filename: str
    left_s: int


def load_secret(folder: Path, configured: str) -> bytes:
    """Return `configured`, or where it is empty the secret kept in `folder`, made if it is missing.

    Raises:
        StorageError: the folder cannot be used.
    """
    if configured:
        return configured.encode()
    with _translated():
        drafts = folder / "drafts"  # where a sweep finds what a dead writer leaves
        for needed in (folder, drafts):
            needed.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "link_secret"
        if not path.exists():
            draft = _write_draft(drafts, (secrets.token_bytes(_SECRET_BYTES),))
            # Another process may be here too: a hard link never replaces, so the first one wins.
            with suppress(FileExistsError):
                os.link(draft, path)
            draft.unlink()
        return path.read_bytes()


class LocalStore:
    """A folder. Thread-safe, and several processes may share it.

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
        """Make the folder and sweep it. Without `public_url` links are paths, `/files/...`.

        Raises:
            StorageError: the folder cannot be used.
        """
        self._objects = folder.absolute() / "objects"
        self._drafts = folder.absolute() / "drafts"
        self._secret = secret
        self._public_url = public_url.rstrip("/")
        self._result_ttl_s = result_ttl_s
        self._clock = clock
        self._sweeping = threading.Lock()
        with _translated():
            for needed in (self._objects, self._drafts):
                needed.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._objects = self._objects.resolve()
        self.sweep()

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:  # noqa: ARG002
        """Return the object or None."""
        with _translated():
            return self._read(key, max_bytes)

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        timeout_s: float,  # noqa: ARG002
    ) -> None:
        """Write a draft, flush it to the disk, rename it."""
        header = json.dumps({"content_type": content_type, "metadata": dict(metadata)})
        with _translated():
            path = self._path(key)
            draft = _write_draft(self._drafts, (header.encode(), b"\n", body))
            try:
                try:
                    _move(draft, path)
                except FileNotFoundError:
                    # A sweep took the empty folder between the two steps.
                    _move(draft, path)
            finally:
                draft.unlink(missing_ok=True)
        if self._clock() - self._swept_at_s >= SWEEP_EVERY_S:
            self.sweep()

    def link(self, key: str, *, content_type: str, filename: str, expires_in_s: int) -> str:
        """Sign a link, and let the object live as long as the link does."""
        require_link(key, content_type=content_type, expires_in_s=expires_in_s)
        now_s = self._clock()
        expires = str(int(now_s) + expires_in_s)
        filename = harmless_name(filename)
        with _translated(), suppress(FileNotFoundError):
            os.utime(self._path(key), (now_s, now_s))
        query = {
            "expires": expires,
            "type": content_type,
            "name": filename,
            "signature": self._sign(key, expires, content_type, filename),
        }
        return f"{self._public_url}/files/{key}?{urlencode(query)}"

    def check(self, *, timeout_s: float) -> None:
        """Prove that the folder can be written."""
        key = f"check/{secrets.token_hex(8)}"
        body = key.encode()
        self.put(key, body, content_type="text/plain", metadata={}, timeout_s=timeout_s)
        found = self.get(key, max_bytes=len(body), timeout_s=timeout_s)
        with _translated():
            self._path(key).unlink()
        if found is None or found.body != body:
            raise StorageError("LOCAL_STORE_DIR does not return what was stored")

    def open_link(self, key: str, query: str) -> LinkedFile:
        """Return what a link opens; `key` is decoded, `query` as it stood in the URL.

        Raises:
            LinkInvalid: it is not a link that `link` made.
            LinkExpired: it was one.
            RouteNotFound: the object is gone.
            StorageError: the object cannot be read.
        """
        expires, content_type, filename, signature = _parse_query(query)
        expected = self._sign(key, expires, content_type, filename)
        if not hmac.compare_digest(expected.encode(), signature.encode()) or not is_key(key):
            raise LinkInvalid("the link is not valid")
        left_s = int(expires) - int(self._clock())
        if left_s <= 0:
            raise LinkExpired("the link has expired")
        with _translated():
            stored = self._read(key, None)
        if stored is None:
            raise RouteNotFound("the file of this link is gone")
        return LinkedFile(stored.body, content_type, filename, left_s)

    def sweep(self) -> None:
        """Delete results whose links have expired, old sources and the drafts of dead writers."""
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            self._swept_at_s = self._clock()
            # os.walk follows no symbolic links and passes over folders it cannot read.
            for folder, _, names in os.walk(self._drafts):
                for name in names:
                    _delete_older(Path(folder, name), self._swept_at_s - LEFTOVER_AFTER_S)
            for folder, _, names in os.walk(self._objects, topdown=False):
                is_result = "results" in Path(folder).relative_to(self._objects).parts
                life_s = self._result_ttl_s if is_result else SOURCE_LIFE_S
                for name in names:
                    _delete_older(Path(folder, name), self._swept_at_s - life_s)
                if Path(folder) != self._objects:
                    with suppress(OSError):  # not empty
                        Path(folder).rmdir()
        finally:
            self._sweeping.release()

    def _path(self, key: str) -> Path:
        require_key(key)
        path = self._objects / key
        if not path.parent.resolve().is_relative_to(self._objects):
            raise StorageError("the object key leads out of the store", key=key)
        return path

    def _read(self, key: str, max_bytes: int | None) -> StoredObject | None:
        try:
            file = open(self._path(key), "rb", opener=_open_no_link)  # noqa: SIM115 - paths take no opener
        except (FileNotFoundError, NotADirectoryError):
            return None
        with file:
            metadata = json.loads(file.readline(_MAX_HEADER_BYTES))["metadata"]
            if not all(isinstance(value, str) for value in metadata.values()):
                raise ValueError(key)
            size = os.fstat(file.fileno()).st_size - file.tell()
            if max_bytes is not None and size > max_bytes:
                raise StorageError(f"the stored object is over {max_bytes} bytes", key=key)
            return StoredObject(body=file.read(), metadata=metadata)

    def _sign(self, *parts: str) -> str:
        text = json.dumps(["retouch-link-1", *parts])
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


def _open_no_link(path: str, flags: int) -> int:
    """Open for `open`; the last part of the path must be no symbolic link either."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _parse_query(query: str) -> list[str]:
    pairs: list[tuple[str, str]] = []
    if len(query) <= _MAX_QUERY_CHARACTERS:
        with suppress(ValueError):
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    found = dict(pairs)
    if len(pairs) != len(LINK_QUERY) or set(found) != set(LINK_QUERY):
        raise LinkInvalid("the link is not valid")
    return [found[name] for name in LINK_QUERY]


def _delete_older(path: Path, moment_s: float) -> None:
    # Another process may sweep the same folder; what is gone or locked now is no fault.
    with suppress(OSError):
        if path.lstat().st_mtime < moment_s:
            path.unlink()


def _move(draft: Path, path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft.replace(path)


def _write_draft(folder: Path, pieces: tuple[bytes, ...]) -> Path:
    """Write a file that only this user can read; it is on the disk when this returns.

    Without the flush a power cut after the rename could leave a name with half a body.
    """
    handle, name = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(handle)
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise StoreDenied("the local store may not be used; check LOCAL_STORE_DIR") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        fault = type(error).__name__
        raise StoreUnavailable(
            "the local store failed; check the disk of LOCAL_STORE_DIR", fault=fault
        ) from error
