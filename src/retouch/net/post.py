"""POST to an untrusted URL: checked addresses, one deadline, no redirects, the answer's status only."""

import asyncio
from collections.abc import Mapping

from retouch.errors import InvalidRequest
from retouch.net.connect import Connector, map_errors
from retouch.net.http1 import Exchange
from retouch.net.limits import FetchLimits
from retouch.net.url import SourceUrl, parse_url

_HTTPS_PORT = 443


class Poster:
    """Posts to public hosts by HTTPS, and in any way to `limits.allowed_hosts`.

    Belongs to one event loop.
    """

    def __init__(self, limits: FetchLimits, connector: Connector | None = None) -> None:
        self._limits = limits
        self._connector = connector or Connector(limits)

    def parse(self, text: str) -> SourceUrl:
        """Return the URL of a webhook. What a name resolves to is checked when it is posted to.

        Raises:
            InvalidRequest: it is malformed, or neither HTTPS on port 443, at no private address, nor one
                of `allowed_hosts`.
        """
        try:
            url = parse_url(text)
        except ValueError as error:
            raise InvalidRequest.for_fields({"webhook": str(error)}) from None
        is_plain = (url.scheme, url.port) != ("https", _HTTPS_PORT)
        is_exempt = url.host_port in self._limits.allowed_hosts
        if not is_exempt and (is_plain or url.names_private_address):
            fault = (
                "must be an https URL on port 443 of a public address, "
                "or of a host in ALLOWED_WEBHOOK_HOSTS"
            )
            raise InvalidRequest.for_fields({"webhook": fault}, host=url.host)
        return url

    async def post(
        self, url: SourceUrl, body: bytes, headers: Mapping[str, str], *, timeout_s: float
    ) -> int:
        """Post `body` as JSON and return the status of the answer, which is not read further.

        Raises:
            DownloadFailed: the host is refused, unreachable or breaks HTTP.
            TimeoutError: it did not answer in time.
        """
        fields = [
            (b"Host", url.authority.encode()),
            (b"User-Agent", self._limits.user_agent.encode()),
            (b"Content-Type", b"application/json"),
            (b"Content-Length", str(len(body)).encode()),
            (b"Connection", b"close"),
            *((name.encode(), value.encode()) for name, value in headers.items()),
        ]
        async with asyncio.timeout(timeout_s):
            with map_errors(url.host):
                async with self._connector.connect(url) as stream:
                    response = await Exchange(stream).send("POST", url.target, fields, body)
                    return response.status_code
