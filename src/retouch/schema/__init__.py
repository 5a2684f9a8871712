"""The wire for both doors: what a request may say (`request`) and what an answer says (`answer`).

JSON Schema and the OpenAPI document come from these models, so every field carries its own words.
"""

from retouch.schema.request import (
    BOTH_SIDES_OR_NONE,
    EXAMPLE,
    MAX_PROMPT_TOKENS,
    MAX_STEPS,
    SCHEDULERS,
    SIDE_MULTIPLE_PX,
    EditRequest,
    invalid_request,
)
from retouch.schema.response import (
    EditResult,
    ErrorBody,
    Meta,
    Progress,
    Result,
    SourceMeta,
    Timings,
    error_body,
)

__all__ = [
    "BOTH_SIDES_OR_NONE",
    "EXAMPLE",
    "MAX_PROMPT_TOKENS",
    "MAX_STEPS",
    "SCHEDULERS",
    "SIDE_MULTIPLE_PX",
    "EditRequest",
    "EditResult",
    "ErrorBody",
    "Meta",
    "Progress",
    "Result",
    "SourceMeta",
    "Timings",
    "error_body",
    "invalid_request",
]
