"""The closed tree of failures: type, code, HTTP status and retry advice sit on the class.

The message of an error is safe to show to a caller; `context` is for the log only.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self


class EditError(Exception):
    """Any failure a caller is told about.

    `type` is the coarse name of the contract, `code` the stable fine one, `status` the HTTP status and
    `retryable` whether the same request may succeed later. `details` travels to the caller beside the
    code; `context` never leaves the log.
    """

    type: ClassVar[str] = "InternalError"
    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, details: Mapping[str, Any] | None = None, **context: Any
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = dict(details or {})
        self.context = context

    def fresh(self) -> Self:
        """Return this error without its traceback and causes, to be kept or raised elsewhere."""
        clone = type(self).__new__(type(self), *self.args)
        clone.__dict__.update(self.__dict__)
        return clone


class InternalError(EditError):
    """A fault of this program; the log line with the same request id has the trace."""


# --- BadInput: the request or the picture it names cannot be used -------------------------------


class BadInput(EditError):
    """The request, or the image it names, cannot be used as it is."""

    type, code, status = "BadInput", "bad_input", 400


class InvalidRequest(BadInput):
    """One or more fields are wrong; `fields` maps each field's name to what was wrong with it."""

    code = "invalid_request"

    def __init__(self, fields: Mapping[str, str], **context: Any) -> None:
        text = "; ".join(f"{name}: {wrong}" for name, wrong in fields.items())
        super().__init__(text, details={"fields": dict(fields)}, **context)


class MalformedBody(BadInput):
    """The body is not one JSON object in UTF-8."""

    code = "malformed_body"


class RouteNotFound(BadInput):
    """There is nothing at this path."""

    code, status = "route_not_found", 404


class MethodNotAllowed(BadInput):
    """The path exists, the method on it does not."""

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
    """The source image is too much longer than it is wide, or the other way round."""

    code = "image_too_narrow"


class UnsupportedImage(BadInput):
    """The source is not an image in one of the accepted formats."""

    code = "unsupported_image"


class BrokenImage(BadInput):
    """The source is damaged, truncated or lies about itself."""

    code = "broken_image"


class DecodeLimitExceeded(BadInput):
    """Decoding the source took more time or memory than an honest image needs."""

    code = "image_too_costly"


# --- DownloadFailed: the origin did not deliver ------------------------------------------------


class DownloadFailed(EditError):
    """The source image could not be downloaded."""

    type, code, status, retryable = "DownloadFailed", "download_failed", 502, True

    @property
    def may_pass(self) -> bool:
        """Whether the origin may answer a moment later, which callers are not always told."""
        return self.retryable


class SourceUnreachable(DownloadFailed):
    """No such host, or one that may not be reached: callers cannot tell which, on purpose."""

    code, retryable = "source_unreachable", False

    def __init__(self, **context: Any) -> None:
        super().__init__("the host of image_url does not exist or may not be reached", **context)

    @property
    def may_pass(self) -> bool:
        """Whether the look-up failed in a way that may pass."""
        return self.context.get("reason") == "unresolved"


class SourceConnectFailed(DownloadFailed):
    """The origin refused or dropped the connection, or its TLS certificate is not valid."""

    code = "source_connect_failed"


class SourceTimedOut(DownloadFailed):
    """The origin did not deliver the image in time."""

    code = "source_timed_out"


class SourceStatusError(DownloadFailed):
    """The origin answered with an error status; `details.origin_status` has it."""

    code, retryable = "source_refused", False


class SourceServerError(DownloadFailed):
    """The origin answered 5xx or 429; `details.origin_status` has it."""

    code = "source_failing"


class SourceRedirectError(DownloadFailed):
    """The origin redirects too often, to nowhere, or from https to http."""

    code, retryable = "source_misdirected", False


class SourceProtocolError(DownloadFailed):
    """The origin's answer breaks HTTP or ends before it is complete."""

    code = "source_malformed"


class SourceEncoded(DownloadFailed):
    """The origin compresses although it was asked not to."""

    code, retryable = "source_encoded", False


# --- the store ---------------------------------------------------------------------------------


class CacheReadFailed(EditError):
    """The cached source could not be read and the origin failed as well."""

    type, code, status, retryable = "CacheReadFailed", "cache_unreadable", 502, True


class StorageError(EditError):
    """The object store did not do what was asked."""

    type, code, status, retryable = "StorageError", "storage_failed", 503, True


class StoreUnavailable(StorageError):
    """The object store is down, slow or overloaded."""

    code = "store_unavailable"


class StoreDenied(StorageError):
    """The object store refuses the configured key, bucket or signature."""

    code, retryable = "store_denied", False


# --- the model ---------------------------------------------------------------------------------


class ModelError(EditError):
    """The model failed on this edit."""

    type, code, status = "ModelError", "model_failed", 500


class OutOfMemory(ModelError):
    """The GPU ran out of memory on this edit; a smaller one may fit."""

    code, retryable = "out_of_memory", True


class NonFiniteResult(ModelError):
    """The model produced values that are no numbers; no image is returned."""

    code, retryable = "non_finite_result", True


# --- admission and access ----------------------------------------------------------------------


class Unauthorized(EditError):
    """The API key is missing or wrong."""

    type, code, status = "Unauthorized", "unauthorized", 401


class LinkInvalid(Unauthorized):
    """The signature of a file link does not match."""

    code, status = "link_invalid", 403


class LinkExpired(Unauthorized):
    """A file link is past its expiry."""

    code, status = "link_expired", 403


class Overloaded(EditError):
    """The queue is full; `retry_after_s` says when a place is likely."""

    type, code, status, retryable = "Overloaded", "queue_full", 429, True

    def __init__(self, message: str, *, retry_after_s: int, **context: Any) -> None:
        super().__init__(message, details={"retry_after": retry_after_s}, **context)
        self.retry_after_s = retry_after_s


class NotReady(EditError):
    """The model is still loading."""

    type, code, status, retryable = "NotReady", "not_ready", 503, True


class ModelLost(NotReady):
    """The model hangs; the process ends so that its supervisor starts another."""

    code = "model_lost"


class DeadlineExceeded(EditError):
    """The job was not done within its time."""

    type, code, status, retryable = "DeadlineExceeded", "deadline_exceeded", 504, True


class Cancelled(EditError):
    """The caller went away or cancelled the job. 499 is nginx's "client closed request"."""

    type, code, status = "Cancelled", "cancelled", 499


def error_classes() -> list[type[EditError]]:
    """Every class of the tree that is raised, each once, parents first."""
    found: list[type[EditError]] = [EditError]
    for cls in found:
        found.extend(sub for sub in cls.__subclasses__() if sub.__module__ == __name__)
    return [cls for cls in found if cls not in {EditError, BadInput, DownloadFailed}]
