"""The keys of objects in both stores."""

import hashlib
import re

from retouch.errors import StorageError

_KEY = re.compile(r"[0-9a-z._-]+(?:/[0-9a-z._-]+)*")
_MAX_KEY_CHARACTERS = 1024
_PLAIN_JOB_ID = re.compile(r"[0-9a-z][0-9a-z_-]{0,127}")
_NUMBERED = re.compile(r".*-[0-3]")


def source_key(prefix: str, source_id: str) -> str:
    """Return the key of a cached source.

    >>> source_key("p/", "ab12")
    'p/sources/v1/ab/ab12'
    """
    return f"{prefix}sources/v1/{source_id[:2]}/{source_id}"


def result_key(prefix: str, source_id: str, job_id: str, extension: str, *, number: int = 0) -> str:
    """Return the key of a job's result, the `number`-th. It can be built before the source is fetched.

    A job id with other characters than keys have is replaced by its hash. One that ends like a
    numbered result has its numbers from 0, so that no two jobs share a key.

    >>> [result_key("p/", "ab12", "job", "jpg", number=number) for number in (0, 1)]
    ['p/results/ab12/job.jpg', 'p/results/ab12/job-1.jpg']
    >>> result_key("p/", "ab12", "job-1", "jpg")
    'p/results/ab12/job-1-0.jpg'
    """
    is_plain = _PLAIN_JOB_ID.fullmatch(job_id)
    word = job_id if is_plain else hashlib.sha256(job_id.encode()).hexdigest()
    if number or _NUMBERED.fullmatch(word):
        word = f"{word}-{number}"
    return f"{prefix}results/{source_id}/{word}.{extension}"


def reuse_key(prefix: str, fingerprint: str) -> str:
    """Return the key of the index object that names the result of equal requests.

    >>> reuse_key("p/", "ab12")
    'p/reuse/v1/ab/ab12'
    """
    return f"{prefix}reuse/v1/{fingerprint[:2]}/{fingerprint}"


def is_source_key(key: str) -> bool:
    """Whether `key` names a cached source.

    >>> is_source_key("p/sources/v1/ab/ab12"), is_source_key("p/results/ab12/job-1.jpg")
    (True, False)
    """
    return key.split("/")[-4:-2] == ["sources", "v1"]


def is_key(key: str) -> bool:
    """Whether `key` may name an object in either store.

    >>> is_key("retouch/results/ab12/job-1.png"), is_key("results/../secret"), is_key("/a")
    (True, False, False)
    """
    return (
        len(key) <= _MAX_KEY_CHARACTERS
        and _KEY.fullmatch(key) is not None
        and {".", ".."}.isdisjoint(key.split("/"))
    )


def require_key(key: str) -> None:
    """Require that `key` is well-formed.

    Raises:
        StorageError: it is empty, too long, or has a character or segment that keys do not have.
    """
    if not is_key(key):
        raise StorageError("the object key is not valid", key=key)


def disposition(key: str, kind: str) -> str:
    """Return a Content-Disposition (RFC 6266): `inline` shows the object, `attachment` saves it.

    >>> disposition("p/results/ab12/job-1.jpg", "inline")
    'inline; filename="job-1.jpg"'
    """
    return f'{kind}; filename="{key.rpartition("/")[2]}"'
