"""The S3 home of the `Store` port, by minio; written for Backblaze B2 and any other S3.

One PUT and one GET an object, plain requests only: B2 has no conditional PUT, no object ACLs, and
not everywhere checksum headers.
"""

import io
import logging
import secrets
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from minio import Minio
from minio.error import MinioException
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_before_delay,
    wait_random_exponential,
)
from urllib3.exceptions import HTTPError, LocationValueError, SSLError

from retouch.errors import StorageError, StoreDenied, StoreUnavailable
from retouch.logs import event
from retouch.storage.keys import attachment, require_key, require_link
from retouch.storage.port import StoredObject
from retouch.storage.s3_transport import Connections, Refusal, deadline, read_and_release

log = logging.getLogger(__name__)
T = TypeVar("T")

_FAULTS = (Refusal, MinioException, HTTPError, OSError, ValueError)
# Backblaze's integration checklist: back off and retry on these and on broken connections. AWS
# reports a slow upload, and a body that was spoilt on its way, as status 400 with one of the codes.
_TRANSIENT_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
_TRANSIENT_CODES = frozenset({"RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch"})
_MAX_RETRY_AFTER_S = 30.0
_BACKOFF = wait_random_exponential(multiplier=0.5, max=8)
_META = "x-amz-meta-"
_MIN_PART_BYTES = 5 * 1024 * 1024

_ADVICE = {
    "AccessDenied": "the key may not do this; it must read, write and delete in S3_BUCKET",
    "InvalidAccessKeyId": "check S3_ACCESS_KEY",
    "SignatureDoesNotMatch": "check S3_SECRET_KEY and S3_REGION",
    "RequestTimeTooSkewed": "check the clock of this machine",
    "NoSuchBucket": "check S3_BUCKET",
    "InvalidBucketName": "check S3_BUCKET",
    "AuthorizationHeaderMalformed": "check S3_REGION",
    "PermanentRedirect": "check S3_REGION and S3_ENDPOINT",
    "TemporaryRedirect": "check S3_REGION and S3_ENDPOINT",
}
_ADVICE_ELSE = "check S3_ENDPOINT, S3_REGION, S3_BUCKET and the key"


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the bucket is and how long to wait for it.

    `endpoint` is `host[:port]`; `timeout_s` bounds any one operation, its retries included;
    `prefix` starts the key of the probe object of `check`, for keys that are bound to a prefix.
    """

    endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    bucket: str
    region: str
    secure: bool = True
    prefix: str = ""
    timeout_s: float = 120.0
    connect_timeout_s: float = 3.0
    read_timeout_s: float = 10.0
    max_connections: int = 16


def is_transient(fault: BaseException) -> bool:
    """Tell whether the same request may succeed a moment later."""
    if isinstance(fault, Refusal):
        return fault.status in _TRANSIENT_STATUSES or fault.code in _TRANSIENT_CODES
    if isinstance(fault, SSLError):
        return not any(isinstance(arg, ssl.SSLCertVerificationError) for arg in fault.args)
    return isinstance(fault, HTTPError | OSError) and not isinstance(fault, LocationValueError)


def translate(fault: Exception, operation: str) -> StorageError:
    """Say in our words what `fault` means; nothing that a server sent gets into the text."""
    context: dict[str, Any] = {"operation": operation, "fault": type(fault).__name__}
    if isinstance(fault, Refusal):
        context |= {"status": fault.status, "s3_code": fault.code}
    if is_transient(fault):
        text = "the object store is down, slow or overloaded, or S3_ENDPOINT is wrong"
        return StoreUnavailable(text, **context)
    if isinstance(fault, SSLError):
        advice = "its certificate is not valid; check S3_ENDPOINT and S3_SECURE"
    elif isinstance(fault, Refusal):
        advice = _ADVICE.get(fault.code, _ADVICE_ELSE)
    else:
        advice = _ADVICE_ELSE
    return StoreDenied(f"the object store cannot be used as configured: {advice}", **context)


def wait_s(state: RetryCallState) -> float:
    """Return how long to wait before the next try: what the server asked for, within reason."""
    fault = state.outcome.exception() if state.outcome else None
    asked_s = fault.retry_after_s if isinstance(fault, Refusal) else 0.0
    return max(_BACKOFF(state), min(asked_s, _MAX_RETRY_AFTER_S))


class S3Store:
    """A bucket. Thread-safe; `max_connections` calls run at once, further ones wait."""

    def __init__(self, settings: S3Settings, *, ca_certs: str | None = None) -> None:
        """Make no request. `ca_certs` is a PEM file to trust in place of certifi's.

        Raises:
            StoreDenied: the endpoint or the region is malformed.
        """
        self.name = settings.bucket
        self._settings = settings
        self._connections = Connections(
            max_connections=settings.max_connections,
            connect_timeout_s=settings.connect_timeout_s,
            ca_certs=ca_certs,
        )
        try:
            self._client = Minio(
                endpoint=settings.endpoint,
                access_key=settings.access_key,
                secret_key=settings.secret_key,
                secure=settings.secure,
                # Without it the first call asks for the bucket's location, signed for us-east-1.
                region=settings.region,
                http_client=self._connections,
            )
        except ValueError as error:
            raise translate(error, "configure") from error

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:
        """Return the object or None; a key that may not list the bucket gets a denial instead."""
        require_key(key)
        return self._run("get", timeout_s, lambda: self._get(key, max_bytes))

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        """Store the object by one PUT; where an answer is lost, the same PUT goes out again."""
        require_key(key)
        self._run("put", timeout_s, lambda: self._put(key, body, content_type, metadata))

    def link(self, key: str, *, content_type: str, filename: str, expires_in_s: int) -> str:
        """Presign a GET that answers with this content type, as a file to save."""
        require_link(key, content_type=content_type, expires_in_s=expires_in_s)
        try:
            return self._client.presigned_get_object(
                bucket_name=self.name,
                object_name=key,
                expires=timedelta(seconds=expires_in_s),
                response_headers={
                    "response-content-type": content_type,
                    "response-content-disposition": attachment(filename),
                },
            )
        except ValueError as error:
            raise translate(error, "link") from error

    def check(self, *, timeout_s: float) -> None:
        """Prove that the key, the bucket and the clock are right."""
        key = f"{self._settings.prefix}check/{secrets.token_hex(8)}"
        require_key(key)
        self._run("check", timeout_s, lambda: self._probe(key))

    def close(self) -> None:
        """Drop the idle connections."""
        self._connections.clear()

    def _run(self, operation: str, timeout_s: float, call: Callable[[], T]) -> T:
        budget_s = min(timeout_s, self._settings.timeout_s)

        def note(state: RetryCallState) -> None:
            fault = type(state.outcome.exception()).__name__ if state.outcome else ""
            wait_ms = round(state.upcoming_sleep * 1000)
            level = logging.WARNING
            event(
                log, "store.retried", level=level, operation=operation, fault=fault, wait_ms=wait_ms
            )

        attempts = Retrying(
            retry=retry_if_exception(is_transient),
            wait=wait_s,
            stop=stop_before_delay(budget_s),
            before_sleep=note,
            reraise=True,
        )
        try:
            with deadline(budget_s, wait_s=self._settings.read_timeout_s):
                return attempts(call)
        except _FAULTS as error:
            raise translate(error, operation) from error

    def _get(self, key: str, max_bytes: int) -> StoredObject | None:
        try:
            response = self._client.get_object(bucket_name=self.name, object_name=key)
        except Refusal as refusal:
            if refusal.code == "NoSuchKey":
                return None
            raise
        body = read_and_release(response, max_bytes=max_bytes + 1)
        if len(body) > max_bytes:
            raise StorageError(f"the stored object is over {max_bytes} bytes", key=key)
        headers = {name.lower(): value for name, value in response.headers.items()}
        metadata = {
            name.removeprefix(_META): value
            for name, value in headers.items()
            if name.startswith(_META)
        }
        return StoredObject(body=body, metadata=metadata)

    def _put(self, key: str, body: bytes, content_type: str, metadata: Mapping[str, str]) -> None:
        user_metadata: dict[str, Any] = dict(metadata)
        written = self._client.put_object(
            bucket_name=self.name,
            object_name=key,
            data=io.BytesIO(body),
            length=len(body),
            # Over one part, minio turns to multipart: five requests, three threads, no retries.
            part_size=max(_MIN_PART_BYTES, len(body)),
            content_type=content_type,
            metadata=user_metadata,
        )
        if not written.etag:  # every S3 has one; a page that some proxy answers with has not
            raise Refusal(200, "", 0.0)

    def _probe(self, key: str) -> None:
        self._put(key, key.encode(), "text/plain", {})
        found = self._get(key, len(key))
        self._client.remove_object(bucket_name=self.name, object_name=key)
        if found is None or found.body != key.encode():
            raise StorageError("the object store does not return what was stored")
