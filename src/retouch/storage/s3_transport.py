"""urllib3 connections that keep one deadline through connecting, sending, headers and body.

urllib3's own timeouts are per socket operation: a peer that drips one byte at a time outlives them.
"""

import io
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

import certifi
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import InvalidHeader
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry

_PIECE_BYTES = 64 * 1024
_MAX_ANSWER_BYTES = 64 * 1024
_SUCCESSES = (200, 204)
# Codes are letters; with digits an echoed key id would be one too.
_S3_CODE = re.compile(rb"<Code>([A-Za-z]{1,64}|XAmzContentSHA256Mismatch)</Code>")


class Refusal(Exception):
    """An answer that is not a success: its status, and its S3 error code where it has one.

    The body is dropped: a server may put anything into it, the key id that was sent included.
    """

    def __init__(self, status: int, code: str, retry_after_s: float) -> None:
        super().__init__(f"HTTP {status} {code}".rstrip())
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class _Clock:
    """When the operation must be over, and how long one wait for the peer may be."""

    ends_at_s: float
    wait_s: float

    def left_s(self) -> float:
        left_s = self.ends_at_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the operation is past its deadline")
        return min(left_s, self.wait_s)


_clock: ContextVar[_Clock] = ContextVar("clock")


@contextmanager
def deadline(timeout_s: float, *, wait_s: float) -> Iterator[None]:
    """End whatever is requested inside after `timeout_s`, and any one wait in it after `wait_s`."""
    token = _clock.set(_Clock(time.monotonic() + timeout_s, wait_s))
    try:
        yield
    finally:
        _clock.reset(token)


class _ClockedInput(io.RawIOBase):
    """What a socket receives; looks at the clock before each read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_clock.get().left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _ClockedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_ClockedInput(sock))


class _HttpConnection(HTTPConnection):
    response_class = _ClockedResponse

    def send(self, data: Any) -> None:
        # urllib3 sends under the connect timeout, and on a plain socket that is the time for the
        # whole body: 12 MB in 3 s. Pieces make it the time for 64 KiB.
        view = memoryview(data)
        for start in range(0, len(view), _PIECE_BYTES):
            if self.sock is not None:
                self.sock.settimeout(_clock.get().left_s())
            super().send(view[start : start + _PIECE_BYTES])


class _HttpsConnection(_HttpConnection, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class Connections(PoolManager):
    """A pool for minio: no retries and no redirects of its own, a refusal is raised at once."""

    def __init__(
        self, *, max_connections: int, connect_timeout_s: float, ca_certs: str | None
    ) -> None:
        super().__init__(
            maxsize=max_connections,
            block=True,
            retries=False,
            cert_reqs="CERT_REQUIRED",
            ca_certs=ca_certs or certifi.where(),
        )
        self.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        self._connect_timeout_s = connect_timeout_s

    def urlopen(  # type: ignore[override] # urllib3 overrides it the same way
        self, method: str, url: str, redirect: bool = False, **kw: Any
    ) -> BaseHTTPResponse:
        """Open `url` within the deadline; a body that minio wants preloaded is drained instead.

        Raises:
            Refusal: the answer is not 200 or 204, or its body is an error all the same.
        """
        wants_body = not kw.pop("preload_content", True)
        left_s = _clock.get().left_s()
        timeout = Timeout(connect=min(self._connect_timeout_s, left_s), read=left_s)
        response = super().urlopen(
            method,
            url,
            redirect=redirect,
            preload_content=False,
            pool_timeout=left_s,
            timeout=timeout,
            **kw,
        )
        if response.status in _SUCCESSES and wants_body:
            return response
        body = read_and_release(response, max_bytes=_MAX_ANSWER_BYTES)
        code = _S3_CODE.search(body)
        status = response.status
        if status in _SUCCESSES:
            if code is None:
                return response
            status = 500  # what went wrong after the status was sent (boto/botocore, handlers.py)
        raise Refusal(status, code[1].decode() if code else "", _retry_after_s(response))


def read_and_release(response: BaseHTTPResponse, *, max_bytes: int) -> bytes:
    """Return at most `max_bytes` of the body; the connection is kept only if that was all of it."""
    body = bytearray()
    try:
        # One read may return less; that a body is cut short shows only in the read after it.
        while len(body) < max_bytes:
            piece = response.read(max_bytes - len(body), decode_content=False)
            if not piece:
                break
            body += piece
        return bytes(body)
    finally:
        # A drained response has given its connection back already, and closing it does nothing.
        response.close()
        response.release_conn()


def _retry_after_s(response: BaseHTTPResponse) -> float:
    try:
        return Retry().get_retry_after(response) or 0.0
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0
