"""Every error a caller can get: type, code, HTTP status and retry advice are class attributes.

* EditError
  + InternalError
  + BadInput: the request, or the image it names, cannot be used
    - InvalidRequest, MalformedBody, RouteNotFound, MethodNotAllowed, BodyTooLarge,
      UnsupportedContentType, JobNotFound, JobConflict
    - SourceTooLarge, ImageTooLarge, AspectRatioTooExtreme, UnsupportedImage, BrokenImage,
      DecodeLimitExceeded, MaskEmpty, MaskSizeMismatch
    - UnsupportedLora; EngineRefused: by a remote engine
  + DownloadFailed: the origin did not deliver the image
    - SourceUnreachable: SourceUnresolved
    - SourceConnectFailed: SourceCertificateInvalid
    - SourceTimedOut, SourceStatusError, SourceServerError,
      SourceRedirectError, SourceProtocolError, SourceEncoded
  + CacheReadFailed
  + StorageError
    - StoreUnavailable, StoreDenied
  + ModelError
    - OutOfMemory, NonFiniteResult, EngineDenied
  + Unauthorized
    - LinkInvalid, LinkExpired, HostNotAllowed
  + Overloaded: DownloadsFull, DecoderBusy
  + NotReady: ModelLost, WorkerLost, EngineUnavailable
  + DeadlineExceeded
  + Cancelled

The message and `details` of an error go to the caller; `context` goes to the log only.
"""

import logging
from typing import Any, ClassVar

from retouch.errors.bad_input import (
    AspectRatioTooExtreme as AspectRatioTooExtreme,
    BadInput as BadInput,
    BodyTooLarge as BodyTooLarge,
    BrokenImage as BrokenImage,
    DecodeLimitExceeded as DecodeLimitExceeded,
    EngineRefused as EngineRefused,
    ImageTooLarge as ImageTooLarge,
    InvalidRequest as InvalidRequest,
    JobConflict as JobConflict,
    JobNotFound as JobNotFound,
    MalformedBody as MalformedBody,
    MaskEmpty as MaskEmpty,
    MaskSizeMismatch as MaskSizeMismatch,
    MethodNotAllowed as MethodNotAllowed,
    RouteNotFound as RouteNotFound,
    SourceTooLarge as SourceTooLarge,
    UnsupportedContentType as UnsupportedContentType,
    UnsupportedImage as UnsupportedImage,
    UnsupportedLora as UnsupportedLora,
)
from retouch.errors.edit_error import EditError as EditError
from retouch.errors.one_line import one_line as one_line

_RETRY_AFTER_S = 10


class InternalError(EditError):
    """A fault of this program; the log line with the same request id has the trace."""

    default_message = "an internal error; the log has it under this request id"


class DownloadFailed(EditError):
    """The source image could not be downloaded."""

    type, code, status, retryable = "DownloadFailed", "download_failed", 502, True
    log_level = logging.WARNING
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
    """The model failed on this edit, or cannot be loaded. Its message is one line: files give names to it."""

    type, code, status = "ModelError", "model_failed", 500

    def __init__(self, message: str | None = None, **more: Any) -> None:
        """Take the same as `EditError`."""
        super().__init__(message and one_line(message, max_characters=1000), **more)


class OutOfMemory(ModelError):
    """The GPU ran out of memory on this edit: the same edit will again, a smaller one may fit."""

    code = "out_of_memory"


class NonFiniteResult(ModelError):
    """The model produced non-finite values (NaN or infinity), as it will again; no image is returned."""

    code = "non_finite_result"


class EngineDenied(ModelError):
    """The server that ENGINE_URL names refuses ENGINE_KEY."""

    code = "engine_denied"
    default_message = "the engine refuses the key of this service"


class Unauthorized(EditError):
    """The API key is missing or wrong."""

    type, code, status, log_level = "Unauthorized", "unauthorized", 401, logging.INFO


class LinkInvalid(Unauthorized):
    """The signature of a file link does not match."""

    code, status = "link_invalid", 403


class LinkExpired(Unauthorized):
    """A file link has expired."""

    code, status = "link_expired", 403


class HostNotAllowed(Unauthorized):
    """A request to a loopback address names a host that is not this machine's."""

    code, status = "host_not_allowed", 403


class Overloaded(EditError):
    """The queue is full; `details.retry_after` says in how many seconds a place is likely."""

    type, code, status, retryable = "Overloaded", "queue_full", 429, True
    log_level = logging.WARNING

    @property
    def retry_after_s(self) -> int:
        """Seconds to wait before the next attempt."""
        seconds = self.details.get("retry_after")
        return seconds if isinstance(seconds, int) else _RETRY_AFTER_S


class DownloadsFull(Overloaded):
    """The download was the slowest one and made room for others."""

    code, status = "downloads_full", 503


class DecoderBusy(Overloaded):
    """The source was not decoded in time, or its decoder was killed; the image is not at fault."""

    code, status = "decoder_busy", 503
    default_message = "the image was not decoded in time: the service is too busy"


class NotReady(EditError):
    """The model is still loading."""

    type, code, status, retryable = "NotReady", "not_ready", 503, True
    log_level = logging.WARNING


class ModelLost(NotReady):
    """The model hangs in an earlier edit and this process ends; another one can take the request."""

    code = "model_lost"
    default_message = "the model has stopped responding; this process restarts"


class WorkerLost(NotReady):
    """The process that ran the job died before its end."""

    code = "worker_lost"
    default_message = "the process that ran this job died; send the request again"


class EngineUnavailable(NotReady):
    """The server that ENGINE_URL names is away, busy or starting, or was lost in the middle of the edit."""

    code = "engine_unavailable"


class DeadlineExceeded(EditError):
    """The job did not finish within its time limit."""

    type, code, status, retryable = "DeadlineExceeded", "deadline_exceeded", 504, True
    log_level = logging.WARNING


class Cancelled(EditError):
    """The caller disconnected or cancelled the job. 499 is nginx's "client closed request"."""

    type, code, status, log_level = "Cancelled", "cancelled", 499, logging.INFO


def error_classes() -> list[type[EditError]]:
    """Return every class that has a code of its own and is raised, parents first."""
    found: list[type[EditError]] = [EditError]
    for cls in found:
        found.extend(sub for sub in cls.__subclasses__() if sub.__module__.startswith(__name__))
    groups = {EditError, BadInput, DownloadFailed}
    same_code = {SourceUnresolved, SourceCertificateInvalid}
    return [cls for cls in found if cls not in groups | same_code]
