"""The `Store` port on S3, by minio; for Backblaze B2 and any other S3.

Each object is one plain PUT and one plain GET: B2 has no conditional PUT and no object ACLs, and takes
checksum headers only in part.
"""

import io
import logging
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

from minio import Minio
from minio.error import MinioException, S3Error
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_before_delay,
    wait_random_exponential,
)
from urllib3.response import BaseHTTPResponse

from retouch import tracing
from retouch.errors import StorageError
from retouch.logs import event
from retouch.storage.keys import disposition, require_key
from retouch.storage.port import StoredObject
from retouch.storage.s3_errors import FAULTS, is_transient, translate
from retouch.storage.s3_transport import Connections, TransientStatus, deadline

log = logging.getLogger(__name__)
T = TypeVar("T")

_MAX_RETRY_AFTER_S = 30.0
_BACKOFF = wait_random_exponential(multiplier=0.5, max=8)
_META = "x-amz-meta-"
_MIN_PART_BYTES = 5 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class S3Settings:
    """The bucket, its key and its time limits.

    `endpoint` is `host[:port]`; links are signed for `public_endpoint`, or if it is empty for the same.
    `timeout_s` bounds an operation with its retries; `prefix` starts the key of the object that `check`
    writes, for keys that are restricted to a prefix. `disposition` is `inline` for links that show the
    image, `attachment` for links that save it.
    """

    endpoint: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    bucket: str
    region: str
    secure: bool = True
    public_endpoint: str = ""
    public_secure: bool = True
    prefix: str = ""
    disposition: str = "inline"
    timeout_s: float = 120.0
    connect_timeout_s: float = 3.0
    read_timeout_s: float = 10.0
    max_connections: int = 16


def wait_s(state: RetryCallState) -> float:
    """Return the seconds until the next attempt: a random backoff, or what the server asks for."""
    fault = state.outcome.exception() if state.outcome else None
    asked_s = fault.retry_after_s if isinstance(fault, TransientStatus) else 0
    return max(_BACKOFF(state), min(asked_s, _MAX_RETRY_AFTER_S))


class S3Store:
    """A bucket. Thread-safe; `max_connections` calls run at once, further ones wait."""

    def __init__(self, settings: S3Settings, *, ca_certs: str | None = None) -> None:
        """Send no request. `ca_certs` is a PEM file to trust in place of the usual ones.

        Raises:
            StoreDenied: the endpoint or the region is malformed.
        """
        self.name = settings.bucket
        self._settings = settings
        self._is_denial_logged = False
        self._connections = Connections(
            max_connections=settings.max_connections,
            connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            ca_certs=ca_certs,
        )
        self._client = self._open(settings.endpoint, secure=settings.secure)
        self._signer = self._client  # sends no request, so its host need not be reachable from here
        if settings.public_endpoint:
            self._signer = self._open(settings.public_endpoint, secure=settings.public_secure)

    def _open(self, endpoint: str, *, secure: bool) -> Minio:
        try:
            return Minio(
                endpoint=endpoint,
                access_key=self._settings.access_key,
                secret_key=self._settings.secret_key,
                secure=secure,
                # Without it minio first asks for the bucket's location, signed for us-east-1.
                region=self._settings.region,
                http_client=self._connections,
            )
        except ValueError as error:
            raise translate(error, "configure") from error

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:
        """Return the object or None.

        403 counts as None, with a warning: S3 answers so for a missing object where the key may not list
        the bucket. Whether the key may read is shown by `check`.
        """
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
        """Store the object by one PUT, which is repeated if its response is lost."""
        require_key(key)
        self._run("put", timeout_s, lambda: self._put(key, body, content_type, metadata))

    def link(self, key: str, *, expires_in_s: int) -> str:
        """Presign a GET of the object."""
        require_key(key)
        try:
            return self._signer.presigned_get_object(
                bucket_name=self.name,
                object_name=key,
                expires=timedelta(seconds=expires_in_s),
                response_headers={
                    "response-content-disposition": disposition(key, self._settings.disposition)
                },
            )
        except ValueError as error:
            raise translate(error, "link") from error

    def list_keys(self, prefix: str, *, max_keys: int, timeout_s: float) -> list[str]:
        """Return the keys by ListObjectsV2, 1,000 a request."""
        require_key(prefix.removesuffix("/"))

        def read() -> list[str]:
            found = self._client.list_objects(bucket_name=self.name, prefix=prefix, recursive=True)
            return [str(one.object_name) for one in islice(found, max_keys)]

        return self._run("list", timeout_s, read)

    def check(self, *, timeout_s: float) -> None:
        """Put, get and delete an object, which also proves that the clock is right."""
        key = f"{self._settings.prefix}check/{secrets.token_hex(8)}"
        require_key(key)
        self._run("check", timeout_s, lambda: self._probe(key))

    def close(self) -> None:
        """Close the idle connections."""
        self._connections.clear()

    def _run(self, operation: str, timeout_s: float, call: Callable[[], T]) -> T:
        budget_s = min(timeout_s, self._settings.timeout_s)

        def note(state: RetryCallState) -> None:
            fault = type(state.outcome.exception()).__name__ if state.outcome else ""
            fields: dict[str, Any] = {"operation": operation, "fault": fault}
            fields["wait_ms"] = round(state.upcoming_sleep * 1000)
            event(log, "store.retried", level=logging.WARNING, **fields)

        attempts = Retrying(
            retry=retry_if_exception(is_transient),
            wait=wait_s,
            stop=stop_before_delay(budget_s),
            before_sleep=note,
            reraise=True,
        )
        try:
            with tracing.span(f"s3.{operation}"), deadline(budget_s):
                return attempts(call)
        except FAULTS as error:
            raise translate(error, operation) from error

    def _get(
        self, key: str, max_bytes: int, *, misses: Collection[str] = ("NoSuchKey", "AccessDenied")
    ) -> StoredObject | None:
        try:
            response = self._client.get_object(bucket_name=self.name, object_name=key)
        except S3Error as error:
            if error.code not in misses:
                raise
            if error.code == "AccessDenied" and not self._is_denial_logged:
                self._is_denial_logged = True
                event(log, "store.list_denied", level=logging.WARNING, bucket=self.name)
            return None
        metadata = {
            name.lower().removeprefix(_META): value
            for name, value in response.headers.items()
            if name.lower().startswith(_META)
        }
        return StoredObject(body=_read(response, max_bytes), metadata=metadata)

    def _put(self, key: str, body: bytes, content_type: str, metadata: Mapping[str, str]) -> None:
        user_metadata: dict[str, Any] = dict(metadata)
        written = self._client.put_object(
            bucket_name=self.name,
            object_name=key,
            data=io.BytesIO(body),
            length=len(body),
            # Over one part minio uploads in parts: five requests, three threads, no retries.
            part_size=max(_MIN_PART_BYTES, len(body)),
            content_type=content_type,
            metadata=user_metadata,
        )
        if not written.etag:  # every S3 sends one, a web page with status 200 does not
            raise MinioException("the response has no ETag")

    def _probe(self, key: str) -> None:
        self._put(key, key.encode(), "text/plain", {})
        found = self._get(key, len(key), misses=("NoSuchKey",))
        self._client.remove_object(bucket_name=self.name, object_name=key)
        if found is None or found.body != key.encode():
            raise StorageError("the object store does not return what was stored")
        self._get(key, len(key))  # now missing: a key that may not list the bucket shows itself


def _read(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    body = bytearray()
    try:
        for chunk in response.stream(_CHUNK_BYTES, decode_content=False):
            body += chunk
            if len(body) > max_bytes:
                raise StorageError(f"the stored object is over {max_bytes} bytes")
        return bytes(body)
    finally:
        response.close()  # does nothing once the body is read and the connection given back
        response.release_conn()
