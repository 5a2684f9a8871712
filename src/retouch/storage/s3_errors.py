"""What goes wrong with an S3 store, as errors of storage."""

import ssl
from typing import Any
from xml.etree.ElementTree import ParseError

from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError, LocationValueError, SSLError

from retouch.errors import StorageError, StoreDenied, StoreUnavailable
from retouch.storage.s3_transport import TransientStatus

FAULTS = (MinioException, HTTPError, OSError, ValueError, ParseError)
# AWS reports a slow upload, and a body damaged on its way, as status 400 with one of these codes.
_TRANSIENT_CODES = frozenset({"RequestTimeout", "BadDigest", "XAmzContentSHA256Mismatch"})

_ADVICE = {
    "AccessDenied": "the key lacks a permission; it must be able to read, write and delete in S3_BUCKET",
    "InvalidAccessKeyId": "check S3_ACCESS_KEY",
    "SignatureDoesNotMatch": "check S3_SECRET_KEY and S3_REGION",
    "RequestTimeTooSkewed": "check the clock of this machine",
    "NoSuchBucket": "there is no such bucket; check S3_BUCKET",
    "InvalidBucketName": "check S3_BUCKET",
    "AuthorizationHeaderMalformed": "check S3_REGION",
    "PermanentRedirect": "check S3_REGION and S3_ENDPOINT",
    "TemporaryRedirect": "check S3_REGION and S3_ENDPOINT",
}
_ADVICE_ELSE = "check S3_ENDPOINT, S3_SECURE, S3_REGION, S3_BUCKET and the key"
# OpenSSL's reasons for what is not TLS at all; which of them depends on its version.
_NOT_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL"}


def is_transient(fault: BaseException) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(fault, S3Error):
        return fault.code in _TRANSIENT_CODES
    if isinstance(fault, SSLError):
        return not (_is_bad_certificate(fault) or _is_not_tls(fault))
    return isinstance(fault, HTTPError | OSError) and not isinstance(fault, LocationValueError)


def translate(fault: Exception, operation: str) -> StorageError:
    """Map `fault` to an error of ours, without any text that the server sent."""
    context: dict[str, Any] = {"operation": operation, "fault": type(fault).__name__}
    code = fault.code or "" if isinstance(fault, S3Error) else ""
    if code.isalpha():  # with digits it could be an echoed key id
        context["s3_code"] = code
    if isinstance(fault, TransientStatus):
        context["status"] = fault.status
    if is_transient(fault):
        text = "the object store is down, slow or overloaded, or S3_ENDPOINT is wrong"
        return StoreUnavailable(text, **context)
    if isinstance(fault, SSLError) and _is_not_tls(fault):
        advice = "it does not use HTTPS; set S3_SECURE=false, or the HTTPS port in S3_ENDPOINT"
    elif isinstance(fault, SSLError):
        advice = "its certificate is not valid; check S3_ENDPOINT, or name its authority's file in SSL_CERT_FILE"
    else:
        advice = _ADVICE.get(code, _ADVICE_ELSE)
    return StoreDenied(f"the object store cannot be used as configured: {advice}", **context)


def _is_bad_certificate(fault: SSLError) -> bool:
    return any(isinstance(arg, ssl.SSLCertVerificationError) for arg in fault.args)


def _is_not_tls(fault: SSLError) -> bool:
    return any(getattr(arg, "reason", "") in _NOT_TLS for arg in fault.args)
