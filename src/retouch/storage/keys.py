"""The key of every object, and the limits of keys, links and file names that both stores keep."""

import hashlib
import re

from retouch.errors import StorageError

MIN_LINK_S = 1
MAX_LINK_S = 7 * 24 * 3600
"""The longest lifetime of a presigned S3 URL (AWS, "Download and upload objects with presigned URLs").
Local links keep to it too."""

_KEY = re.compile(r"[0-9a-z._-]+(?:/[0-9a-z._-]+)*")
_MAX_KEY_CHARACTERS = 1024
_CONTENT_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]+")
_NOT_IN_FILENAME = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_FILENAME_CHARACTERS = 100
_PLAIN_JOB_ID = re.compile(r"[0-9a-z][0-9a-z_-]{0,127}")


def source_key(prefix: str, source_id: str) -> str:
    """Return the key of a cached source.

    >>> source_key("p/", "ab12")
    'p/sources/v1/ab/ab12'
    """
    return f"{prefix}sources/v1/{source_id[:2]}/{source_id}"


def result_key(prefix: str, source_id: str, job_id: str, extension: str) -> str:
    """Return the key of a job's result. It can be built before the source is fetched.

    A job id with other characters than keys have is replaced by its hash.

    >>> result_key("p/", "ab12", "job-1", "jpg")
    'p/results/ab12/job-1.jpg'
    """
    is_plain = _PLAIN_JOB_ID.fullmatch(job_id)
    word = job_id if is_plain else hashlib.sha256(job_id.encode()).hexdigest()
    return f"{prefix}results/{source_id}/{word}.{extension}"


def is_result_key(key: str) -> bool:
    """Whether `key` names a result, not a cached source.

    >>> is_result_key("p/results/ab12/job-1.jpg"), is_result_key("p/sources/v1/ab/ab12")
    (True, False)
    """
    return key.split("/")[-3:-2] == ["results"]


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


def require_link(key: str, *, content_type: str, expires_in_s: int) -> None:
    """Require that both stores can sign such a link.

    Raises:
        StorageError: the key, the content type or the lifetime is invalid.
    """
    require_key(key)
    if _CONTENT_TYPE.fullmatch(content_type) is None:
        raise StorageError("the link's content type is not valid", content_type=content_type)
    if not MIN_LINK_S <= expires_in_s <= MAX_LINK_S:
        raise StorageError(
            f"a link can live {MIN_LINK_S} to {MAX_LINK_S} seconds; check PRESIGN_EXPIRY",
            expires_in_s=expires_in_s,
        )


def harmless_name(filename: str) -> str:
    r"""Return `filename` as one short word that is safe in headers, shells and file systems.

    >>> harmless_name('../a "b".png\r\nSet-Cookie: x'), harmless_name("...")
    ('a-b-.png-Set-Cookie-x', 'file')
    """
    plain = _NOT_IN_FILENAME.sub("-", filename).strip(".-")
    return plain[-_MAX_FILENAME_CHARACTERS:] or "file"


def attachment(filename: str) -> str:
    """Return a Content-Disposition (RFC 6266) that makes browsers save the file.

    >>> attachment("cat.png")
    'attachment; filename="cat.png"'
    """
    return f'attachment; filename="{harmless_name(filename)}"'
