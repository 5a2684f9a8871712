"""The connection pool below minio: time limits for each request, and no retries of its own."""

import io
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import certifi
from urllib3 import PoolManager, Timeout
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from retouch import tracing

# Backblaze's integration checklist: back off and retry on these and on broken connections.
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

_ends_at_s: ContextVar[float] = ContextVar("ends_at_s")


class TransientStatus(HTTPError):
    """A response whose status says that the same request may succeed later. Its body is dropped."""

    def __init__(self, response: BaseHTTPResponse) -> None:
        super().__init__(f"HTTP {response.status}")
        self.status = response.status
        asked = response.headers.get("Retry-After", "")
        self.retry_after_s = int(asked) if asked.isdecimal() else 0


@contextmanager
def deadline(timeout_s: float) -> Iterator[None]:
    """Give every request inside at most what is left of `timeout_s`.

    It bounds connecting and each wait for the server, not a server that sends byte by byte: the caller
    has a time limit of its own.
    """
    token = _ends_at_s.set(time.monotonic() + timeout_s)
    try:
        yield
    finally:
        _ends_at_s.reset(token)


class Connections(PoolManager):
    """Connections that verify certificates and keep the deadline."""

    def __init__(
        self,
        *,
        max_connections: int,
        connect_timeout_s: float,
        read_timeout_s: float,
        ca_certs: str | None,
    ) -> None:
        trust = ssl.create_default_context(cafile=ca_certs)  # else the system's, or SSL_CERT_FILE's
        if not ca_certs:
            trust.load_verify_locations(certifi.where())
        super().__init__(maxsize=max_connections, block=True, retries=False, ssl_context=trust)
        self._timeouts_s = (connect_timeout_s, read_timeout_s)

    def urlopen(  # type: ignore[override] # urllib3 overrides it the same way
        self, method: str, url: str, redirect: bool = False, **kw: Any
    ) -> BaseHTTPResponse:
        """Send one request.

        Raises:
            TransientStatus: the status is one to retry.
            TimeoutError: the deadline has passed.
        """
        left_s = _ends_at_s.get() - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no time is left for the request")
        if trace := tracing.headers():  # no part of the signature
            kw["headers"] = {**(kw.get("headers") or {}), **trace}
        if kw.get("body"):
            # urllib3 sends under the connect timeout. For bytes that is the time of the whole body, for
            # a file the time of each block.
            kw["body"] = io.BytesIO(kw["body"])
        connect_s, read_s = self._timeouts_s
        timeout = Timeout(total=left_s, connect=connect_s, read=read_s)
        response = super().urlopen(
            method, url, redirect=redirect, timeout=timeout, pool_timeout=left_s, **kw
        )
        if response.status in _TRANSIENT_STATUSES:
            response.close()
            response.release_conn()
            raise TransientStatus(response)
        return response
