"""How long a signed URL says that it is valid."""

import base64
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from retouch.net.url import SourceUrl

# Names of query parameters: the signatures of S3, GCS, Alibaba and their like, Azure, CloudFront, Tencent,
# Akamai and Google's CDN, Discord, Facebook, Alibaba's and Tencent's CDN, ImageKit; then what stands for
# a login of some hours, as at Backblaze, Google and SharePoint.
_SIGNATURE = re.compile(
    r"(x-|x-\w+-|q-)?signature|sig|hdnts|hdnea|__token__|__hdnea__|hmac|hm|oh|auth_key|wssecret|ik-s"
    r"|authorization|access_token|tempauth"
)
# Signatures only beside an expiry: alone they are an id, or a token that lasts. `t` is LinkedIn's.
_TOKENS = frozenset(["token", "md5", "hash", "st", "t"])
_VENDORS_DATE = re.compile(r"(x-\w+)-date")
_POLICY_EPOCH = re.compile(rb'"AWS:EpochTime"\s*:\s*(\d+)')
_AKAMAI_EPOCH = re.compile(r"(?:^|~)exp=(\d+)")
_JWT_EPOCH = re.compile(rb'"exp"\s*:\s*(\d+)')  # RFC 7519, 4.1.4


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
        for vendor in filter(None, map(_VENDORS_DATE.fullmatch, query)):
            date = datetime.strptime(f"{query[vendor[0]]}+0000", "%Y%m%dT%H%M%SZ%z")
            return date.timestamp() + int(query[f"{vendor[1]}-expires"])
        for name, read in _EXPIRIES.items():
            if name in query and (expiry_s := read(query[name])):
                return expiry_s
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


def _read_token(text: str) -> float:
    """Return the expiry in one of Akamai's tokens or a JWT, 0 if there is none."""
    found = _AKAMAI_EPOCH.search(text) or _JWT_EPOCH.search(_decode_claims(text))
    return float(int(found[1])) if found else 0.0


def _decode_claims(token: str) -> bytes:
    claims = token.split(".")[1] if token.count(".") == 2 else ""  # noqa: PLR2004 - RFC 7519, 3
    with suppress(ValueError):
        return base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))
    return b""


def _read_epoch(text: str, base: int = 10) -> float:
    return float(int(text, base))


_EXPIRIES: Mapping[str, Callable[[str], float]] = {
    "se": _read_iso,
    "policy": _read_policy,
    "q-sign-time": lambda text: _read_epoch(text.partition(";")[2]),
    **dict.fromkeys(("hdnts", "hdnea", "__token__", "__hdnea__", "token"), _read_token),
    **dict.fromkeys(("expires", "exp", "expire", "expiry", "x-expires", "e", "ik-t"), _read_epoch),
    **dict.fromkeys(("ex", "oe"), lambda text: _read_epoch(text, 16)),
}
