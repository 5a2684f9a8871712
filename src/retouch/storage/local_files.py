"""Files of the local store: written whole, deleted by age, their failures as errors of storage."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from retouch.errors import StoreDenied, StoreUnavailable


def delete_old(folder: Path, oldest_s: Callable[[Path], float]) -> list[tuple[float, int, Path]]:
    """Delete files older than `oldest_s` of each; return time, size and path of the others.

    Removes empty directories too.
    """
    kept = []
    for directory, _, names in os.walk(folder, topdown=False):
        for path in (Path(directory, name) for name in names):
            with suppress(OSError):  # another process may sweep the same directory at the same time
                found = path.lstat()
                if found.st_mtime < oldest_s(path):
                    path.unlink()
                else:
                    kept.append((found.st_mtime, found.st_size, path))
        if Path(directory) != folder:
            with suppress(OSError):  # it is not empty
                Path(directory).rmdir()
    return kept


def write(path: Path, *parts: bytes, drafts: Path) -> None:
    """Write a file that only this user can read. It appears whole, and is on the disk on return."""
    drafts.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=drafts)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(handle)  # or a power cut after the rename could leave half a body
        for _ in range(10):
            # A sweep, also of another process, removes directories while they are empty.
            with suppress(FileNotFoundError, FileExistsError):
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                Path(draft).replace(path)
                return
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink()
        raise


@contextmanager
def map_errors() -> Iterator[None]:
    """Raise what a file system or a damaged file raises as an error of storage."""
    try:
        yield
    except PermissionError as error:
        raise StoreDenied("no permission in the local store; check LOCAL_STORE_DIR") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        fault = type(error).__name__
        raise StoreUnavailable(
            "the local store failed; check the disk of LOCAL_STORE_DIR", fault=fault
        ) from error
