"""API keys: who may come in."""

import hashlib
import hmac

from starlette.datastructures import Headers

from retouch.errors import Unauthorized


class ApiKeyAuth:
    """The keys that open the door; with none it stands open."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key) for key in keys]

    def require(self, headers: Headers) -> None:
        """Let a caller with a key pass.

        Every key is compared, by digests of one length, so that time tells nothing.

        Raises:
            Unauthorized: the caller has none, or a wrong one.
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


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
