"""Errors of the request, or of the image it names."""

import logging
from collections.abc import Mapping
from typing import Any, Self

from retouch.errors.edit_error import EditError


class BadInput(EditError):
    """The request, or the image it names, cannot be used."""

    type, code, status, log_level = "BadInput", "bad_input", 400, logging.INFO


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
    """The body is not one JSON object in UTF-8, or not a whole multipart form."""

    code = "malformed_body"


class RouteNotFound(BadInput):
    """There is no such path."""

    code, status = "route_not_found", 404


class JobNotFound(BadInput):
    """There is no such job, it is another caller's, or its record has expired."""

    code, status = "job_not_found", 404
    default_message = "there is no such job, or it began too long ago (JOB_RETENTION_SECONDS)"


class JobConflict(BadInput):
    """The id or the Idempotency-Key belongs to another request."""

    code, status = "job_conflict", 409
    default_message = "this id or Idempotency-Key was used for another request"


class MethodNotAllowed(BadInput):
    """The path does not take this method."""

    code, status = "method_not_allowed", 405


class BodyTooLarge(BadInput):
    """The request body is over its limit."""

    code, status = "body_too_large", 413


class UnsupportedContentType(BadInput):
    """The request body is declared as neither JSON nor multipart/form-data."""

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


class UnsupportedLora(BadInput):
    """The file at a LoRA adapter's URL is another one, or cannot be applied in full."""

    code = "unsupported_lora"


class BrokenImage(BadInput):
    """The source image is damaged, truncated or inconsistent."""

    code = "broken_image"


class MaskEmpty(BadInput):
    """The mask selects nothing."""

    code = "mask_empty"
    default_message = "the mask selects nothing: white, or else transparent, is the part to edit"


class MaskSizeMismatch(BadInput):
    """The mask has another shape than the first image."""

    code = "mask_size_mismatch"


class DecodeLimitExceeded(BadInput):
    """Decoding the source image went over the limits of time or memory."""

    code = "image_too_costly"


class EngineRefused(BadInput):
    """The server that ENGINE_URL names refuses the edit, in its own words."""

    code = "engine_refused"
