"""What the headers of an HTTP response say about keeping it: RFC 9111, for a shared cache.

`sources.cache_entry` decides whether a stored source is still fresh.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

_DIRECTIVE = re.compile(r'([a-z0-9_-]+)(?:\s*=\s*(?:"([^"]*)"|([^\s,]*)))?')
_FOREVER_S = 2**31  # RFC 9111, section 1.2.2
_HEURISTIC_SHARE = 10


def read_cache_headers(header: Callable[[bytes], str]) -> tuple[int | None, bool]:
    """Return for how many more seconds a response is fresh, and whether it may be stored at all.

    `header` gives a header's value by its name in lower case, empty if it is missing. The seconds
    are None where the origin does not say.
    """
    age = header(b"age")
    cache_control = header(b"cache-control")
    if not cache_control and "no-cache" in header(b"pragma").lower():
        return 0, True
    max_age_s, storable = parse_cache_control(cache_control, age=age)
    if max_age_s is None and header(b"expires"):
        expires_s = parse_date(header(b"expires"))
        date_s = parse_date(header(b"date")) or time.time()
        max_age_s = max(0, int(expires_s - date_s) - _read_seconds(age)) if expires_s else 0
    return max_age_s, storable and header(b"vary").strip() != "*"  # section 4.1


def heuristic_lifetime_s(header: Callable[[bytes], str]) -> int | None:
    """Return a tenth of the age that Last-Modified gives, None without it (section 4.2.2)."""
    modified_s = parse_date(header(b"last-modified"))
    date_s = parse_date(header(b"date")) or time.time()
    return None if modified_s is None else max(0, int(date_s - modified_s)) // _HEURISTIC_SHARE


def parse_cache_control(value: str, *, age: str = "") -> tuple[int | None, bool]:
    """Return how long a shared cache may keep a response, in seconds, and whether it may at all.

    A lifetime that cannot be read counts as stale (RFC 9111, section 4.2.1).

    >>> parse_cache_control("public, max-age=600", age="60")
    (540, True)
    >>> parse_cache_control("private")
    (None, False)
    """
    directives: dict[str, str] = {}
    for name, quoted, plain in _DIRECTIVE.findall(value.lower()):
        directives.setdefault(name, quoted or plain)
    storable = directives.keys().isdisjoint({"no-store", "private"})
    if "no-cache" in directives:
        return 0, storable
    lifetime = directives.get("s-maxage", directives.get("max-age"))
    if lifetime is None:
        return None, storable
    return max(0, _read_seconds(lifetime) - _read_seconds(age)), storable


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


def _read_seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        return 0
    return min(int(text[:20]), _FOREVER_S)
