"""Every error a caller can get: type, code, HTTP status and retry advice are class attributes.

* EditError
  + InternalError
  + BadInput: the request, or the image it names, cannot be used
    - InvalidRequest, MalformedBody, RouteNotFound, MethodNotAllowed, BodyTooLarge,
      UnsupportedContentType
    - SourceTooLarge, ImageTooLarge, AspectRatioTooExtreme, UnsupportedImage, BrokenImage,
      DecodeLimitExceeded
  + DownloadFailed: the origin did not deliver the image
    - SourceUnreachable: SourceUnresolved
    - SourceConnectFailed: SourceCertificateInvalid
    - SourceTimedOut, SourceStatusError, SourceServerError,
      SourceRedirectError, SourceProtocolError, SourceEncoded
  + CacheReadFailed
  + StorageError
    - StoreUnavailable, StoreDenied
  + ModelError
    - OutOfMemory, NonFiniteResult
  + Unauthorized
    - LinkInvalid, LinkExpired
  + Overloaded: DownloadsFull
  + NotReady: ModelLost
  + DeadlineExceeded
  + Cancelled

The message and `details` of an error go to the caller; `context` goes to the log only.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

_RETRY_AFTER_S = 10


class EditError(Exception):
    """Base of all errors that a caller can get.

    `type` is the coarse name of the contract, `code` the stable fine one, `status` the HTTP status,
    `retryable` whether the same request may succeed later. `default_message` stands where an error is
    raised without a message.
    """

    type: ClassVar[str] = "InternalError"
    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    default_message: ClassVar[str] = ""

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        **context: Any,
    ) -> None:
        """Take the text for the caller, its `details`, and by keyword the `context` for the log."""
        self.message = self.default_message if message is None else message
        super().__init__(self.message)
        self.details: dict[str, Any] = dict(details or {})
        self.context = context


class InternalError(EditError):
    """A fault of this program; the log line with the same request id has the trace."""

    default_message = "an internal error; the log has it under this request id"


class BadInput(EditError):
    """The request, or the image it names, cannot be used."""

    type, code, status = "BadInput", "bad_input", 400


class InvalidRequest(BadInput):
    """One or more fields are wrong; `details.fields` says what is wrong with each."""

    code = "invalid_request"

    @classmethod
    def for_fields(cls, fields: Mapping[str, str], **context: Any) -> Self:
        """Build the error from a fault for each wrong field.

        >>> str(InvalidRequest.for_fields({"seed": "must be an integer", "width": "Field required"}))
        'seed: must be an integer; width: Field required'
        """
        text = "; ".join(f"{name}: {fault}" for name, fault in fields.items())
        return cls(text, details={"fields": dict(fields)}, **context)


class MalformedBody(BadInput):
    """The body is not one JSON object in UTF-8."""

    code = "malformed_body"


class RouteNotFound(BadInput):
    """There is no such path."""

    code, status = "route_not_found", 404


class MethodNotAllowed(BadInput):
    """The path does not take this method."""

    code, status = "method_not_allowed", 405


class BodyTooLarge(BadInput):
    """The request body is over its limit."""

    code, status = "body_too_large", 413


class UnsupportedContentType(BadInput):
    """The request body is not declared as JSON."""

    code, status = "unsupported_content_type", 415


class SourceTooLarge(BadInput):
    """The source image has more bytes than allowed."""

    code, status = "source_too_large", 413


class ImageTooLarge(BadInput):
    """The source image has more pixels, or a longer side, than allowed."""

    code, status = "image_too_large", 413


class AspectRatioTooExtreme(BadInput):
    """The sides of the source image differ too much."""

    code = "image_too_narrow"


class UnsupportedImage(BadInput):
    """The source is not an image in one of the accepted formats."""

    code = "unsupported_image"


class BrokenImage(BadInput):
    """The source image is damaged, truncated or inconsistent."""

    code = "broken_image"


class DecodeLimitExceeded(BadInput):
    """Decoding the source image went over the limits of time or memory."""

    code = "image_too_costly"


class DownloadFailed(EditError):
    """The source image could not be downloaded."""

    type, code, status, retryable = "DownloadFailed", "download_failed", 502, True
    is_transient: ClassVar[bool] = True
    """Whether the origin may answer a moment later. Unlike `retryable`, callers do not see it."""


class SourceUnreachable(DownloadFailed):
    """The host does not exist or may not be reached. Callers cannot tell which, on purpose."""

    code, retryable, is_transient = "source_unreachable", False, False
    default_message = "the host of image_url does not exist or may not be reached"


class SourceUnresolved(SourceUnreachable):
    """The name lookup failed for now. Callers get the same as for `SourceUnreachable`."""

    is_transient = True


class SourceConnectFailed(DownloadFailed):
    """The origin refused or dropped the connection, or its TLS certificate is not valid."""

    code = "source_connect_failed"


class SourceCertificateInvalid(SourceConnectFailed):
    """The origin's TLS certificate is not valid. Callers get the code of `SourceConnectFailed`."""

    retryable, is_transient = False, False


class SourceTimedOut(DownloadFailed):
    """The origin did not deliver the image in time."""

    code = "source_timed_out"


class SourceStatusError(DownloadFailed):
    """The origin answered with an error status; `details.origin_status` has it."""

    code, retryable, is_transient = "source_refused", False, False


class SourceServerError(DownloadFailed):
    """The origin answered 5xx or 429; `details.origin_status` has it."""

    code = "source_failing"


class SourceRedirectError(DownloadFailed):
    """The origin redirects too often, to an invalid URL, or from https to http."""

    code, retryable, is_transient = "source_misdirected", False, False


class SourceProtocolError(DownloadFailed):
    """The origin's response violates HTTP or ends early."""

    code = "source_malformed"


class SourceEncoded(DownloadFailed):
    """The origin compressed the response although it was asked not to."""

    code, retryable, is_transient = "source_encoded", False, False


class CacheReadFailed(EditError):
    """The cached source could not be read, and the origin failed too."""

    type, code, status, retryable = "CacheReadFailed", "cache_unreadable", 502, True


class StorageError(EditError):
    """The object store failed."""

    type, code, status, retryable = "StorageError", "storage_failed", 503, True


class StoreUnavailable(StorageError):
    """The object store is down, slow or overloaded."""

    code = "store_unavailable"


class StoreDenied(StorageError):
    """The object store rejects the configured key, bucket or signature."""

    code, retryable = "store_denied", False


class ModelError(EditError):
    """The model failed on this edit."""

    type, code, status = "ModelError", "model_failed", 500


class OutOfMemory(ModelError):
    """The GPU ran out of memory on this edit: the same edit will again, a smaller one may fit."""

    code = "out_of_memory"


class NonFiniteResult(ModelError):
    """The model produced non-finite values (NaN or infinity), as it will again; no image is returned."""

    code = "non_finite_result"


class Unauthorized(EditError):
    """The API key is missing or wrong."""

    type, code, status = "Unauthorized", "unauthorized", 401


class LinkInvalid(Unauthorized):
    """The signature of a file link does not match."""

    code, status = "link_invalid", 403


class LinkExpired(Unauthorized):
    """A file link has expired."""

    code, status = "link_expired", 403


class Overloaded(EditError):
    """The queue is full; `details.retry_after` says in how many seconds a place is likely."""

    type, code, status, retryable = "Overloaded", "queue_full", 429, True

    @property
    def retry_after_s(self) -> int:
        """Seconds to wait before the next attempt."""
        seconds = self.details.get("retry_after")
        return seconds if isinstance(seconds, int) else _RETRY_AFTER_S


class DownloadsFull(Overloaded):
    """The download was the slowest one and made room for others."""

    code, status = "downloads_full", 503


class NotReady(EditError):
    """The model is still loading."""

    type, code, status, retryable = "NotReady", "not_ready", 503, True


class ModelLost(NotReady):
    """The model hangs in an earlier edit and this process ends; another one can take the request."""

    code = "model_lost"
    default_message = "the model has stopped responding; this process restarts"


class DeadlineExceeded(EditError):
    """The job did not finish within its time limit."""

    type, code, status, retryable = "DeadlineExceeded", "deadline_exceeded", 504, True


class Cancelled(EditError):
    """The caller disconnected or cancelled the job. 499 is nginx's "client closed request"."""

    type, code, status = "Cancelled", "cancelled", 499


def error_classes() -> list[type[EditError]]:
    """Return every class that has a code of its own and is raised, parents first."""
    found: list[type[EditError]] = [EditError]
    for cls in found:
        found.extend(sub for sub in cls.__subclasses__() if sub.__module__ == __name__)
    groups = {EditError, BadInput, DownloadFailed}
    same_code = {SourceUnresolved, SourceCertificateInvalid}
    return [cls for cls in found if cls not in groups | same_code]
