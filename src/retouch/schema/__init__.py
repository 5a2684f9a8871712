"""The wire: `request` is what a caller sends, `response` what it gets, `info` what is loaded.

`fields` has the limits and checks of single values, such as control tokens in a prompt.
JSON Schema and OpenAPI are generated from these models, so every field has a description.
"""

from retouch.schema.faults import invalid_request as invalid_request
from retouch.schema.fields import (
    BLANK_PATTERN as BLANK_PATTERN,
    MAX_IMAGES as MAX_IMAGES,
    MAX_PROMPT_TOKENS as MAX_PROMPT_TOKENS,
    MAX_STEPS as MAX_STEPS,
    SCHEDULERS as SCHEDULERS,
    SIDE_MULTIPLE_PX as SIDE_MULTIPLE_PX,
    CacheMode as CacheMode,
    ResponseFormat as ResponseFormat,
)
from retouch.schema.images_api import (
    ImageData as ImageData,
    ImageOptions as ImageOptions,
    ImagesAnswer as ImagesAnswer,
    ImagesError as ImagesError,
    ImagesFault as ImagesFault,
    Model as Model,
    ModelList as ModelList,
    Quality as Quality,
    TokenDetails as TokenDetails,
    Usage as Usage,
)
from retouch.schema.info import (
    InfoDefaults as InfoDefaults,
    InfoLora as InfoLora,
    ServiceInfo as ServiceInfo,
)
from retouch.schema.job import Job as Job
from retouch.schema.lora import (
    MAX_LORAS as MAX_LORAS,
    Lora as Lora,
    lora_key as lora_key,
)
from retouch.schema.request import EditRequest as EditRequest
from retouch.schema.response import (
    EditResult as EditResult,
    ErrorBody as ErrorBody,
    Geometry as Geometry,
    LoraMeta as LoraMeta,
    Meta as Meta,
    Progress as Progress,
    Result as Result,
    SourceMeta as SourceMeta,
    Timings as Timings,
    error_body as error_body,
    restore_error as restore_error,
)
from retouch.schema.rules import (
    EXAMPLE as EXAMPLE,
    FORM_RULES as FORM_RULES,
    REQUEST_RULES as REQUEST_RULES,
)
from retouch.schema.upload import Upload as Upload
