"""API keys."""

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from retouch.errors import Unauthorized


class ApiKeyAuth:
    """Checks requests against the configured keys; without any, every request passes."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key) for key in keys]

    def require(self, headers: Headers) -> None:
        """Raise unless a valid key came as a bearer token or in X-API-Key.

        All keys are compared, as digests of equal length, so that timing gives nothing away.

        Raises:
            Unauthorized: the key is missing or wrong.
        """
        if not self._digests:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        given = [_digest(bearer), _digest(headers.get("x-api-key", ""))]
        matches = [hmac.compare_digest(one, known) for one in given for known in self._digests]
        if not any(matches):
            raise Unauthorized(
                "an API key is needed: Authorization: Bearer <key>, or X-API-Key: <key>"
            )

    def protect(self, app: ASGIApp) -> ASGIApp:
        """Return `app` behind the check, as middleware of a route."""

        async def protected(scope: Scope, receive: Receive, send: Send) -> None:
            self.require(Headers(scope=scope))
            await app(scope, receive, send)

        return protected


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
