"""The two homes of the `Store` port, and the rules both keep: key shape, link life, file names.

The S3 client is heavy, so `storage.s3` is not imported here.
"""

import re

from retouch.errors import StorageError

MIN_LINK_S = 1
MAX_LINK_S = 7 * 24 * 3600
"""The longest life of a presigned S3 URL; local links keep to it (AWS, "Download and upload objects
with presigned URLs")."""

_KEY = re.compile(r"[0-9a-z._-]+(?:/[0-9a-z._-]+)*")
_MAX_KEY_CHARACTERS = 1024
_CONTENT_TYPE = re.compile(r"[a-z]+/[a-z0-9.+-]+")
_NOT_IN_FILENAME = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_FILENAME_CHARACTERS = 100


def is_key(key: str) -> bool:
    """Tell whether `key` may name an object on either store.

    >>> is_key("retouch/results/ab12/job-1.png"), is_key("results/../secret"), is_key("/a")
    (True, False, False)
    """
    return (
        len(key) <= _MAX_KEY_CHARACTERS
        and _KEY.fullmatch(key) is not None
        and {".", ".."}.isdisjoint(key.split("/"))
    )


def require_key(key: str) -> None:
    """Refuse a key that is no key.

    Raises:
        StorageError: it has a character, or a segment, that keys do not have.
    """
    if not is_key(key):
        raise StorageError("the object key is not valid", key=key)


def require_link(key: str, *, content_type: str, expires_in_s: int) -> None:
    """Refuse a link that one of the two stores could not sign.

    Raises:
        StorageError: the key, the content type or the life of the link is out of its range.
    """
    require_key(key)
    if _CONTENT_TYPE.fullmatch(content_type) is None:
        raise StorageError("the link's content type is not valid", content_type=content_type)
    if not MIN_LINK_S <= expires_in_s <= MAX_LINK_S:
        raise StorageError(
            f"a link lives {MIN_LINK_S} to {MAX_LINK_S} seconds; check PRESIGN_EXPIRY",
            expires_in_s=expires_in_s,
        )


def harmless_name(filename: str) -> str:
    r"""Return `filename` as one short word that no shell, header or file system misreads.

    >>> harmless_name('../a "b".png\r\nSet-Cookie: x'), harmless_name("...")
    ('a-b-.png-Set-Cookie-x', 'file')
    """
    plain = _NOT_IN_FILENAME.sub("-", filename).strip(".-")
    return plain[-_MAX_FILENAME_CHARACTERS:] or "file"


def attachment(filename: str) -> str:
    """Return a Content-Disposition (RFC 6266) that saves the object and never shows it.

    >>> attachment("cat.png")
    'attachment; filename="cat.png"'
    """
    return f'attachment; filename="{harmless_name(filename)}"'
