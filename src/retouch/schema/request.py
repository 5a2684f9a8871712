"""The request of both entry points. Validation is pure: it resolves no name and fetches nothing."""

import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)

from retouch.schema.fields import (
    MAX_IMAGES,
    MAX_PROMPT_CHARACTERS,
    MAX_RESULTS,
    PROMPT_PATTERN,
    TEXT_PATTERN,
    CacheMode,
    OutputFormat,
    ResponseFormat,
    SchedulerName,
    Side,
    SizeFrom,
    SourceImage,
    ToInteger,
    Webhook,
    require_plain_text,
    require_prompt,
)
from retouch.schema.lora import LORA_NAME, MAX_LORAS, Lora, require_distinct
from retouch.schema.upload import Upload


class EditRequest(BaseModel):
    """One to three images and the instruction to edit them by. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # Before `image_url`, whose validator needs it: faults of both are named there.
    image_urls: Annotated[list[SourceImage], Field(min_length=1, max_length=MAX_IMAGES)] | None = (
        Field(
            default=None,
            description="One to three images in place of image_url, which the prompt may call Picture 1, "
            "Picture 2 and Picture 3. Qwen-Image-Edit takes one, its successors 2509 and 2511 three.",
            examples=[["https://example.com/person.jpg", "https://example.com/coat.jpg"]],
        )
    )
    image_url: SourceImage | None = Field(
        default=None,
        description="The image to edit: an http or https URL on a public address, or a data: URL that "
        "holds the image. Required, unless image_urls is given.",
        examples=["https://example.com/image.jpg"],
        validate_default=True,
    )
    prompt: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_PROMPT_CHARACTERS,
            json_schema_extra={"pattern": PROMPT_PATTERN},
        ),
        AfterValidator(require_prompt),
    ] = Field(
        description="What to change; at most 512 tokens of the model's tokenizer.",
        examples=["make colors warmer and add gentle film grain"],
    )
    negative_prompt: (
        Annotated[
            str,
            Field(max_length=MAX_PROMPT_CHARACTERS, json_schema_extra={"pattern": TEXT_PATTERN}),
            AfterValidator(require_plain_text),
        ]
        | None
    ) = Field(
        default=None,
        description="What to avoid. Null or empty: guidance against an empty prompt.",
        examples=["low quality, artifacts"],
    )
    seed: Annotated[int, Field(ge=-1, le=2**32 - 1), ToInteger] | None = Field(
        default=None,
        description="The same seed and request give the same bytes. Null or -1: derived from the job "
        "id. The response contains the seed used.",
        examples=[424242],
    )
    num_images: Annotated[int, Field(ge=1, le=MAX_RESULTS), ToInteger] = Field(
        default=1,
        description="How many results to make, 1 to 4, with the seeds seed, seed + 1 and so on. Where "
        "there are several, results lists them.",
        examples=[1],
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=1000), ToInteger] | None = Field(
        default=None,
        description="Denoising steps. More than 50 are reduced to 50, with a note. Null: the "
        "checkpoint's default.",
        examples=[30],
    )
    guidance_scale: Annotated[float, Field(ge=1, le=20, allow_inf_nan=False)] | None = Field(
        default=None,
        description="Classifier-free guidance scale (true CFG); 1 turns it off and halves the time. "
        "Null: the checkpoint's default.",
        examples=[4.0],
    )
    scheduler: SchedulerName = Field(
        default="Euler",
        description="Sampler. Euler suits most edits; EulerAncestral adds noise at each step.",
        examples=["Euler"],
    )
    output_format: OutputFormat = Field(
        default="png", description="File format of the result; jpg is jpeg.", examples=["png"]
    )
    output_quality: Annotated[int, Field(ge=1, le=100), ToInteger] = Field(
        default=95,
        description="Quality of jpeg, webp and avif, 1 to 100; ignored for png, which is lossless.",
        examples=[95],
    )
    width: Side | None = Field(
        default=None,
        description="Width of the result in pixels, together with height. Null for both: the source's "
        "aspect ratio at the checkpoint's area.",
        examples=[1024],
    )
    height: Side | None = Field(
        default=None,
        description="Height of the result in pixels, together with width.",
        examples=[1024],
        validate_default=True,
    )
    mask_url: SourceImage | None = Field(
        default=None,
        description="The part of the first image to edit, a URL as image_url: its transparent pixels, "
        "or if it has none, its white ones. Outside it the result has the image's own pixels.",
        examples=["https://example.com/mask.png"],
    )
    mask_feather: Annotated[int, Field(ge=0, le=256), ToInteger] = Field(
        default=8,
        description="Width of the transition around the mask, in pixels of the result.",
        examples=[8],
    )
    mask_padding: Annotated[int, Field(ge=0, le=1024), ToInteger] | None = Field(
        default=None,
        description="Edit only the mask's box and this many pixels around it, at the model's full size, "
        "and put it back: the result has the image's size, up to 4 MP. Null: edit the whole image.",
        examples=[64],
    )
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=1.0,
        description="How far from the first image the denoising starts: 1 is from noise alone, lower "
        "values keep more of the image and run fewer steps.",
        examples=[1.0],
    )
    size_from: SizeFrom = Field(
        default="last",
        description="Of several images, whose aspect ratio the result has where no width and height "
        "are given. With a mask or a strength below 1 it is the first's.",
        examples=["last"],
    )

    profile: Annotated[str, Field(pattern=LORA_NAME)] | None = Field(
        default=None,
        description="Steps, guidance and scheduler as one unit, such as lightning-8, among those that "
        "are offered; the request's own values for them are ignored. Null: the default.",
        examples=["full"],
    )
    loras: Annotated[list[Lora], Field(max_length=MAX_LORAS), AfterValidator(require_distinct)] = (
        Field(
            default=[],
            description="LoRA adapters among those that are loaded, or by URL, at most 4.",
            examples=[[{"name": "duotone", "scale": 1.0}]],
        )
    )
    cache: CacheMode = Field(
        default="default",
        description="Use of a cached copy of the source. no-store: neither use nor keep one. "
        "revalidate: ask the origin whether it is current.",
        examples=["default"],
    )
    response_format: ResponseFormat = Field(
        default="url",
        description="b64_json: the answer contains the image as base64 too, beside its link.",
        examples=["url"],
    )
    webhook: Webhook | None = Field(
        default=None,
        description="An https URL that gets the answer when the edit ends, signed as Standard Webhooks "
        "say. The edit goes on when its caller disconnects.",
        examples=["https://example.com/hooks/retouch"],
    )
    webhook_progress: bool = Field(
        default=False,
        description="Send progress to the webhook too, at most every 5 seconds.",
        examples=[False],
    )
    _uploads: Mapping[str, Upload] = PrivateAttr(default_factory=dict)

    @classmethod
    def with_uploads(cls, fields: Mapping[str, object], uploads: Iterable[Upload]) -> Self:
        """Validate `fields`, which may name `uploads` by their references in place of URLs.

        Raises:
            ValidationError: fields are wrong.
        """
        return cls.model_validate(fields, context={one.reference: one for one in uploads})

    def model_post_init(self, context: Any) -> None:
        """Keep the uploads that came as the context of the validation."""
        self._uploads = context or {}

    def without_sources(self) -> Self:
        """Return a copy that holds no image: data: URLs have up to 70 MB of text."""
        bare = self.model_copy(update={"image_url": "", "image_urls": None, "mask_url": None})
        bare.model_post_init(None)
        return bare

    @property
    def sources_bytes(self) -> int:
        """The memory that URLs and uploads take."""
        return sum(
            len(source.body) if isinstance(source, Upload) else sys.getsizeof(source)
            for source in (*self.sources.values(), *self.mask.values())
        )

    @property
    def mask(self) -> dict[str, str | Upload]:
        """The mask, a URL or an upload, by the name of its field; empty where there is none."""
        return {} if self.mask_url is None else {"mask_url": self._find(self.mask_url)}

    @property
    def sources(self) -> dict[str, str | Upload]:
        """The images in order, each a URL or an upload, by the name that errors give it."""
        urls = {"image_url": self.image_url or ""}
        if self.image_urls is not None:
            urls = {f"image_urls[{at}]": url for at, url in enumerate(self.image_urls)}
        return {field: self._find(url) for field, url in urls.items()}

    def _find(self, url: str) -> str | Upload:
        """Return the upload whose reference stands in a field, or else the URL."""
        return self._uploads.get(url, url)

    @property
    def file_format(self) -> str:
        """The output format, with jpg as jpeg."""
        return "jpeg" if self.output_format == "jpg" else self.output_format

    # On fields: pydantic runs a model validator only if all fields are valid.
    @field_validator("image_url")
    @classmethod
    def _require_one_or_many(cls, image_url: str | None, info: ValidationInfo) -> str | None:
        has_many = info.data.get("image_urls", "invalid") is not None
        if has_many and image_url is not None:
            raise ValueError("give image_url or image_urls, not both")
        if not has_many and image_url is None:
            raise ValueError("Field required, unless image_urls is given")
        return image_url

    # These two see a value only where the request has one.
    @field_validator("size_from")
    @classmethod
    def _require_the_first(cls, size_from: SizeFrom, info: ValidationInfo) -> SizeFrom:
        seen = info.data
        keeps_first = seen.get("mask_url") is not None or seen.get("strength", 1) < 1
        if size_from == "last" and keeps_first and len(seen.get("image_urls") or ()) > 1:
            raise ValueError("must be first with a mask or a strength below 1")
        return size_from

    @field_validator("mask_padding")
    @classmethod
    def _require_a_mask_alone(cls, padding_px: int | None, info: ValidationInfo) -> int | None:
        if padding_px is not None and info.data.get("mask_url", "invalid") is None:
            raise ValueError("needs mask_url")
        if padding_px is not None and info.data.get("width") is not None:
            raise ValueError("the result has the image's size: leave out width and height")
        return padding_px

    @field_validator("height")
    @classmethod
    def _require_both_sides(cls, height: int | None, info: ValidationInfo) -> int | None:
        has_width = info.data.get("width", "invalid") is not None
        if has_width != (height is not None):
            raise ValueError("give width and height together, or neither")
        return height
