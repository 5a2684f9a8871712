"""The types of a request's fields: their limits, and the checks of single values."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from retouch.net.url import parse_url

SchedulerName = Literal["Euler", "EulerAncestral", "UniPC", "EulerKarras", "EulerExponential"]
SCHEDULERS: tuple[str, ...] = get_args(SchedulerName)
OutputFormat = Literal["png", "jpeg", "jpg", "webp", "avif"]
CacheMode = Literal["default", "no-store", "revalidate"]
ResponseFormat = Literal["url", "b64_json"]
SizeFrom = Literal["first", "last"]
MAX_IMAGES = 3
MAX_RESULTS = 4
MAX_STEPS = 50
MAX_PROMPT_CHARACTERS = 800
MAX_PROMPT_TOKENS = 512
SIDE_MULTIPLE_PX = 16
MIN_SIDE_PX = 64
MAX_SIDE_PX = 2048

# The markers of the text encoder's chat template; a prompt must not open or close a turn.
_CONTROL_TOKEN = re.compile(r"<\|.*?\|>", re.DOTALL)
_URL_PATTERN = "^([hH][tT][tT][pP][sS]?://|[dD][aA][tT][aA]:)"
# What Python strips; JSON Schema's \s lacks the control characters.
_SPACES = r"\s\x1c-\x1f\x85"
BLANK_PATTERN = rf"^[{_SPACES}]*$"
NOT_BLANK = rf"[^{_SPACES}]"
PROMPT_PATTERN = rf"^(?![\s\S]*<\|[\s\S]*\|>)[\s\S]*{NOT_BLANK}[\s\S]*$"
TEXT_PATTERN = r"^(?![\s\S]*<\|[\s\S]*\|>)[\s\S]*$"

# How JPEG, PNG, GIF, WebP, TIFF, AVIF and HEIC files begin in base64.
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "AAAA")


def _to_integer(value: object) -> object:
    """Accept 49.0 as 49: JSON Schema does, and languages with one number type write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def require_plain_text(text: str) -> str:
    """Require that `text` cannot open or close a turn of the chat template; return it."""
    if _CONTROL_TOKEN.search(text):
        raise ValueError("must not contain control tokens of the model such as <|...|>")
    return text


def require_prompt(text: str) -> str:
    """Require a plain text that is not blank; return it."""
    if not text.strip():
        raise ValueError("must not be blank")
    return require_plain_text(text)


def _require_source(text: str, info: ValidationInfo) -> str:
    if text in (info.context or {}):  # an upload
        return text
    text = text.lstrip()
    if text[:5].lower() == "data:":
        if "," not in text[:256]:
            raise ValueError("must be data:[<type>][;base64],<data>")
        return text
    if text.startswith(_BASE64_STARTS):
        raise ValueError("must be a URL: base64 is sent as data:image/jpeg;base64,<data>")
    if not text[:8].lower().startswith(("http://", "https://")):
        raise ValueError(
            "must be an http, https or data: URL; curl sends a file by -F image=@photo.jpg"
        )
    parse_url(text)
    return text


SourceImage = Annotated[
    str,
    Field(min_length=1, json_schema_extra={"format": "uri", "pattern": _URL_PATTERN}),
    AfterValidator(_require_source),
]


def _require_webhook(text: str) -> str:
    if not text.lstrip()[:8].lower().startswith(("http://", "https://")):
        raise ValueError("must be an https URL")
    parse_url(text)
    return text


Webhook = Annotated[
    str,
    Field(
        min_length=1, json_schema_extra={"format": "uri", "pattern": "^[hH][tT][tT][pP][sS]?://"}
    ),
    AfterValidator(_require_webhook),
]
ToInteger = BeforeValidator(_to_integer)
Side = Annotated[
    int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX, multiple_of=SIDE_MULTIPLE_PX), ToInteger
]
