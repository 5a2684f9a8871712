"""How long a signed URL says that it is valid."""

import base64
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from retouch.net.url import SourceUrl

# Names of query parameters: the signatures of S3, GCS and Alibaba, Azure, CloudFront, Tencent, Akamai
# and Google's CDN, Discord, Facebook, Alibaba's and Tencent's CDN.
_SIGNATURE = re.compile(
    r"(x-(amz|goog|oss)|q)-signature|sig|signature|hdnts|hdnea|__token__|__hdnea__"
    r"|hmac|hm|oh|auth_key|wssecret"
)
# Signatures only beside an expiry: alone they are an id, or a token that lasts.
_TOKENS = frozenset(["token", "md5", "hash", "st"])
_POLICY_EPOCH = re.compile(rb'"AWS:EpochTime"\s*:\s*(\d+)')
_AKAMAI_EPOCH = re.compile(r"(?:^|~)exp=(\d+)")


def valid_for_s(url: SourceUrl, now_s: float) -> float | None:
    """Return how many seconds a signed URL is still valid, None for a URL that is not signed.

    0 where it is over, and where the URL does not say.
    """
    pairs = parse_qsl(url.target.partition("?")[2], errors="replace")
    query = {name.lower(): value for name, value in reversed(pairs)}
    expiry_s = _expiry_s(query)
    has_expiring_token = expiry_s is not None and query.keys() & _TOKENS
    if has_expiring_token or any(map(_SIGNATURE.fullmatch, query)):
        return max(0.0, (expiry_s or 0.0) - now_s)
    return None


def _expiry_s(query: Mapping[str, str]) -> float | None:
    """Return the expiry in Unix time, None if no parameter says it in a known form."""
    try:
        for vendor in ("x-amz", "x-goog", "x-oss"):
            if signed := query.get(f"{vendor}-date"):
                date = datetime.strptime(f"{signed}+0000", "%Y%m%dT%H%M%SZ%z")
                return date.timestamp() + int(query[f"{vendor}-expires"])
        for name, read in _EXPIRIES.items():
            if name in query:
                return read(query[name])
    except (ValueError, KeyError, OverflowError, TypeError):
        pass
    return None


def _read_iso(text: str) -> float:
    ends = datetime.fromisoformat(text)
    return (ends if ends.tzinfo else ends.replace(tzinfo=UTC)).timestamp()


def _read_policy(text: str) -> float:
    plain = text.translate(str.maketrans("-_~", "+=/"))  # as CloudFront spells base64 in URLs
    found = _POLICY_EPOCH.search(base64.b64decode(plain))
    return float(int(found[1])) if found else 0.0


def _read_akamai(text: str) -> float:
    found = _AKAMAI_EPOCH.search(text)
    return float(int(found[1])) if found else 0.0


def _read_epoch(text: str, base: int = 10) -> float:
    return float(int(text, base))


_EXPIRIES: Mapping[str, Callable[[str], float]] = {
    "se": _read_iso,
    "policy": _read_policy,
    "q-sign-time": lambda text: _read_epoch(text.partition(";")[2]),
    **dict.fromkeys(("hdnts", "hdnea", "__token__", "__hdnea__"), _read_akamai),
    **dict.fromkeys(("expires", "exp", "expire", "expiry", "x-expires", "e"), _read_epoch),
    **dict.fromkeys(("ex", "oe"), lambda text: _read_epoch(text, 16)),
}
