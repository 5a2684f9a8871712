"""The wire: `request` is what a caller sends, `response` what it gets, `info` what is loaded.

`fields` has the limits and checks of single values, such as control tokens in a prompt.
JSON Schema and OpenAPI are generated from these models, so every field has a description.
"""

from retouch.schema.faults import invalid_request
from retouch.schema.fields import (
    MAX_IMAGES,
    MAX_PROMPT_TOKENS,
    MAX_STEPS,
    SCHEDULERS,
    SIDE_MULTIPLE_PX,
    CacheMode,
    ResponseFormat,
)
from retouch.schema.images_api import (
    ImageData,
    ImageOptions,
    ImagesAnswer,
    ImagesError,
    ImagesFault,
    Model,
    ModelList,
    Quality,
    TokenDetails,
    Usage,
)
from retouch.schema.info import InfoDefaults, InfoLora, ServiceInfo
from retouch.schema.job import Job
from retouch.schema.lora import MAX_LORAS, Lora, lora_key
from retouch.schema.request import EditRequest
from retouch.schema.response import (
    EditResult,
    ErrorBody,
    Geometry,
    LoraMeta,
    Meta,
    Progress,
    Result,
    SourceMeta,
    Timings,
    error_body,
    restore_error,
)
from retouch.schema.rules import BOTH_SIDES_OR_NONE, EXAMPLE, ONE_OR_MANY_IMAGES
from retouch.schema.upload import Upload

__all__ = [
    "BOTH_SIDES_OR_NONE",
    "EXAMPLE",
    "MAX_IMAGES",
    "MAX_LORAS",
    "MAX_PROMPT_TOKENS",
    "MAX_STEPS",
    "ONE_OR_MANY_IMAGES",
    "SCHEDULERS",
    "SIDE_MULTIPLE_PX",
    "CacheMode",
    "EditRequest",
    "EditResult",
    "ErrorBody",
    "Geometry",
    "ImageData",
    "ImageOptions",
    "ImagesAnswer",
    "ImagesError",
    "ImagesFault",
    "InfoDefaults",
    "InfoLora",
    "Job",
    "Lora",
    "LoraMeta",
    "Meta",
    "Model",
    "ModelList",
    "Progress",
    "Quality",
    "ResponseFormat",
    "Result",
    "ServiceInfo",
    "SourceMeta",
    "Timings",
    "TokenDetails",
    "Upload",
    "Usage",
    "error_body",
    "invalid_request",
    "lora_key",
    "restore_error",
]
