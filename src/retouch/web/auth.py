"""API keys, and which hosts a service on a loopback address may be called by."""

import hashlib
import hmac
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from retouch.errors import HostNotAllowed, Unauthorized

_NAME_CHARACTERS = 8


class ApiKeyAuth:
    """Checks requests against the configured keys; without any, every request passes."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key) for key in keys]

    def identify(self, headers: Headers) -> str | None:
        """Return the name of the key that came as a bearer token or in X-API-Key, if it is valid.

        A key's name is the first 8 hex digits of its SHA-256: safe to log, and no setting has to give
        it. All keys are compared, as digests of equal length, so that timing gives nothing away.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        given = [_digest(bearer), _digest(headers.get("x-api-key", ""))]
        matches = [
            known for one in given for known in self._digests if hmac.compare_digest(one, known)
        ]
        return matches[0].hex()[:_NAME_CHARACTERS] if matches else None

    def require(self, headers: Headers) -> str | None:
        """Return the name of the key, or None where no key is configured.

        Raises:
            Unauthorized: the key is missing or wrong.
        """
        name = self.identify(headers)
        if self._digests and name is None:
            raise Unauthorized(
                "a valid API key is needed: Authorization: Bearer <key>, or X-API-Key: <key>"
            )
        return name

    def protect(self, app: ASGIApp) -> ASGIApp:
        """Return `app` behind the check, as middleware of a route."""

        async def protected(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"]["key"] = self.require(Headers(scope=scope))
            await app(scope, receive, send)

        return protected


class HostCheck:
    """Refuses foreign hosts on loopback: a web page may rebind its DNS name to 127.0.0.1.

    The browser then takes the service for the page's own and names the page's host in `Host` and
    `Origin`. A host that is an IP address cannot be rebound; what connects from another machine does
    not end at a loopback address.
    """

    def __init__(self, allowed: Iterable[str], keys: ApiKeyAuth) -> None:
        named = (one if "//" in one else f"//{one}" for one in allowed if one)
        self._allowed = {"localhost", *(_hostname(one) or one[2:].lower() for one in named)}
        self._keys = keys

    def require(self, scope: Scope) -> None:
        """Raise for a request of a foreign host that has no valid key.

        Raises:
            HostNotAllowed: `Host` or `Origin` is neither a name of this machine nor allowed.
        """
        if "*" in self._allowed or not _is_loopback((scope.get("server") or ("",))[0]):
            return
        headers = Headers(scope=scope)
        host = _hostname("//" + headers.get("host", "localhost"))
        origin = _hostname(headers["origin"]) if "origin" in headers else host
        is_known = self._is_own(host) or _parse_address(host) is not None
        if is_known and (origin == host or self._is_own(origin)):
            return
        if self._keys.identify(headers) is None:
            raise HostNotAllowed(
                "this service takes requests for localhost only; ALLOWED_HOSTS names other hosts"
            )

    def protect(self, app: ASGIApp) -> ASGIApp:
        """Return `app` behind the check."""

        async def protected(scope: Scope, receive: Receive, send: Send) -> None:
            self.require(scope)
            await app(scope, receive, send)

        return protected

    def _is_own(self, host: str) -> bool:
        return host in self._allowed or host.endswith(".localhost") or _is_loopback(host)


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    address = _parse_address(host)
    return address is not None and (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _parse_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
