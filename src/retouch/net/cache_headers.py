"""What the headers of an HTTP response say about keeping it: RFC 9111, for a shared cache.

`sources.cache_entry` decides whether a stored source is still fresh.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

_DIRECTIVE = re.compile(r'([a-z0-9_-]+)(?:\s*=\s*(?:"([^"]*)"|([^\s,]*)))?')
FOREVER_S = 2**31  # RFC 9111, section 1.2.2
_HEURISTIC_SHARE = 10
_NEVER_STALE = {"no-cache", "must-revalidate", "proxy-revalidate", "s-maxage"}


def read_cache_headers(header: Callable[[bytes], str]) -> tuple[int | None, bool]:
    """Return for how many more seconds a response is fresh, and whether it may be stored at all.

    `header` gives a header's value by its name in lower case, empty if it is missing. The seconds
    are None where the origin does not say. A lifetime that cannot be read counts as stale (RFC 9111,
    section 4.2.1).
    """
    directives = _read_directives(header)
    age_s = _read_seconds(header(b"age").partition(",")[0].strip())  # the first (section 5.1)
    lifetime = directives.get("s-maxage", directives.get("max-age"))
    max_age_s = None
    if "no-cache" in directives:
        max_age_s = 0
    elif lifetime is not None:
        max_age_s = max(0, _read_seconds(lifetime) - age_s)
    elif header(b"expires"):
        expires_s = parse_date(header(b"expires"))
        date_s = parse_date(header(b"date")) or time.time()
        max_age_s = max(0, int(expires_s - date_s) - age_s) if expires_s else 0
    storable = directives.keys().isdisjoint({"no-store", "private"})
    return max_age_s, storable and "*" not in header(b"vary")  # section 4.1


def read_max_stale_s(header: Callable[[bytes], str]) -> int:
    """Return for how long a stale response may be used while its origin fails, in seconds.

    0 where a directive forbids it (section 4.2.4), else `stale-if-error` (RFC 5861), else `FOREVER_S`.
    """
    directives = _read_directives(header)
    if not directives.keys().isdisjoint(_NEVER_STALE):
        return 0
    return _read_seconds(directives.get("stale-if-error", str(FOREVER_S)))


def heuristic_lifetime_s(header: Callable[[bytes], str]) -> int | None:
    """Return a tenth of the age that Last-Modified gives, None without it (section 4.2.2)."""
    modified_s = parse_date(header(b"last-modified"))
    date_s = parse_date(header(b"date")) or time.time()
    return None if modified_s is None else max(0, int(date_s - modified_s)) // _HEURISTIC_SHARE


def parse_date(text: str) -> float | None:
    """Return an HTTP date in Unix time, None if it cannot be read.

    >>> parse_date("Thu, 01 Jan 1970 00:01:00 GMT"), parse_date("0")
    (60.0, None)
    """
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _read_directives(header: Callable[[bytes], str]) -> dict[str, str]:
    """Return the directives of Cache-Control, the first of each name; without it those of Pragma."""
    directives: dict[str, str] = {}
    value = header(b"cache-control") or header(b"pragma")
    for name, quoted, plain in _DIRECTIVE.findall(value.lower()):
        directives.setdefault(name, quoted or plain)
    return directives


def _read_seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        return 0
    return min(int(text[:20]), FOREVER_S)
