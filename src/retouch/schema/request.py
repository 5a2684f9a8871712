"""What a request may say. Checked without asking anyone: no name is resolved, nothing is fetched."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from retouch.errors import InvalidRequest
from retouch.net.url import parse_url

SchedulerName = Literal["Euler", "EulerAncestral", "UniPC", "EulerKarras", "EulerExponential"]
SCHEDULERS: tuple[str, ...] = get_args(SchedulerName)
OutputFormat = Literal["png", "jpeg", "jpg", "webp", "avif"]
MAX_STEPS = 50
MAX_PROMPT_CHARACTERS = 800
MAX_PROMPT_TOKENS = 512
SIDE_MULTIPLE_PX = 16
MIN_SIDE_PX = 64
MAX_SIDE_PX = 2048

# The chat template of the text encoder is made of such markers; a prompt must not close or open one.
_CONTROL_TOKEN = re.compile(r"<\|.*?\|>", re.DOTALL)
_SAYS_SOMETHING = r"^(?![\s\S]*<\|[\s\S]*\|>)[\s\S]*\S[\s\S]*$"
_PLAIN_TEXT = r"^(?![\s\S]*<\|[\s\S]*\|>)[\s\S]*$"


def _read_whole(value: object) -> object:
    """Take 49.0 for 49, as JSON Schema does and languages with one kind of number write it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _require_plain_text(text: str) -> str:
    if _CONTROL_TOKEN.search(text):
        raise ValueError("must not contain control tokens of the model such as <|...|>")
    return text


def _require_words(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return _require_plain_text(text)


def _require_source(text: str) -> str:
    """Refuse what can be seen to be wrong without asking anyone."""
    if text[:5].lower() == "data:":
        if "," not in text[:256]:
            raise ValueError("must be data:[<type>][;base64],<data>")
        return text
    parse_url(text)
    return text


_WHOLE = BeforeValidator(_read_whole)
_Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX, multiple_of=SIDE_MULTIPLE_PX), _WHOLE]

# The whole of a request in one picture; beside the model, as BentoML's schema knows no examples.
EXAMPLE: Mapping[str, object] = {
    "image_url": "https://example.com/image.jpg",
    "prompt": "make colors warmer and add gentle film grain",
    "negative_prompt": "low quality, artifacts",
    "seed": 424242,
    "num_inference_steps": 30,
    "guidance_scale": 7.5,
    "scheduler": "EulerAncestral",
    "output_format": "png",
    "output_quality": 95,
}

BOTH_SIDES_OR_NONE: Mapping[str, JsonValue] = {
    "if": {"properties": {"width": {"type": "integer"}}, "required": ["width"]},
    "then": {"properties": {"height": {"type": "integer"}}, "required": ["height"]},
    "else": {"properties": {"height": {"type": "null"}}},
}
"""What JSON Schema adds to `EditRequest`: not in the model's own, because BentoML's build knows no `if`.

As one condition: generators of clients take `anyOf` here for other models.
"""


class EditRequest(BaseModel):
    """An image and what to do with it. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    image_url: Annotated[
        str,
        Field(
            title="Image URL",
            description="Where the image is: http or https on a public address, or the image itself "
            "as a data: URL.",
            examples=["https://example.com/image.jpg"],
            min_length=1,
            json_schema_extra={
                "format": "uri",
                "pattern": "^([hH][tT][tT][pP][sS]?://|[dD][aA][tT][aA]:)",
            },
        ),
        AfterValidator(_require_source),
    ]
    prompt: Annotated[
        str,
        Field(
            title="Prompt",
            description="What to change, in words; at most 512 tokens of the model's tokenizer.",
            examples=["make colors warmer and add gentle film grain"],
            min_length=1,
            max_length=MAX_PROMPT_CHARACTERS,
            json_schema_extra={"pattern": _SAYS_SOMETHING},
        ),
        AfterValidator(_require_words),
    ]
    negative_prompt: Annotated[
        Annotated[
            str,
            Field(max_length=MAX_PROMPT_CHARACTERS, json_schema_extra={"pattern": _PLAIN_TEXT}),
            AfterValidator(_require_plain_text),
        ]
        | None,
        Field(
            title="Negative prompt",
            description="What to steer away from. Null or empty guides against an empty prompt.",
            examples=["low quality, artifacts"],
        ),
    ] = None
    seed: Annotated[
        Annotated[int, Field(ge=-1, le=2**32 - 1), _WHOLE] | None,
        Field(
            title="Seed",
            description="The same seed and request give the same bytes. Null or -1: derived from the "
            "job id. The seed used is in the answer.",
            examples=[424242],
        ),
    ] = None
    num_inference_steps: Annotated[
        Annotated[int, Field(ge=1, le=1000), _WHOLE] | None,
        Field(
            title="Inference steps",
            description="Denoising steps; more than 50 are cut to 50 and a note says so. Null: the "
            "checkpoint's own number.",
            examples=[30],
        ),
    ] = None
    guidance_scale: Annotated[
        Annotated[float, Field(ge=1, le=20, allow_inf_nan=False)] | None,
        Field(
            title="Guidance scale",
            description="Classifier-free guidance (the model's true CFG); 1 is off and twice as fast. "
            "Null: the checkpoint's own value.",
            examples=[4.0],
        ),
    ] = None
    scheduler: Annotated[
        SchedulerName,
        Field(
            title="Scheduler",
            description="How the steps are taken. Euler suits edits; EulerAncestral adds fresh noise.",
            examples=["Euler"],
        ),
    ] = "Euler"
    output_format: Annotated[
        OutputFormat,
        Field(
            title="Output format",
            description="The result's file format; jpg is jpeg.",
            examples=["png"],
        ),
    ] = "png"
    output_quality: Annotated[
        int,
        Field(
            title="Output quality",
            description="Quality of jpeg, webp and avif; png is lossless and ignores it.",
            examples=[95],
            ge=1,
            le=100,
        ),
        _WHOLE,
    ] = 95
    width: Annotated[
        _Side | None,
        Field(
            title="Width",
            description="The result's width in pixels, with height; null for both keeps the source's "
            "shape at the checkpoint's own area.",
            examples=[1024],
        ),
    ] = None
    height: Annotated[
        _Side | None,
        Field(
            title="Height",
            description="The result's height in pixels, with width.",
            examples=[1024],
            validate_default=True,
        ),
    ] = None

    @property
    def file_format(self) -> str:
        """The output format by its one name: jpg is jpeg."""
        return "jpeg" if self.output_format == "jpg" else self.output_format

    # On the field, not the model: pydantic asks a model's validator only where no field is wrong.
    @field_validator("height")
    @classmethod
    def _require_both_sides(cls, height: int | None, info: ValidationInfo) -> int | None:
        has_width = info.data.get("width", "a wrong one") is not None
        if has_width != (height is not None):
            raise ValueError("give width and height together, or neither")
        return height


def invalid_request(error: ValidationError) -> InvalidRequest:
    """Name every wrong field of a request and what was wrong with it, never the value given."""
    fields: dict[str, str] = {}
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(fault["loc"][0]) if fault["loc"] else "request"
        if fault["type"] == "extra_forbidden":
            name = name[:64].encode("ascii", "backslashreplace").decode()
        fields.setdefault(name, fault["msg"].removeprefix("Value error, "))
    return InvalidRequest.for_fields(dict(list(fields.items())[:32]))
