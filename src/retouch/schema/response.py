"""The responses of both entry points: success, failure and progress."""

from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from retouch.errors import EditError, error_classes


class SourceMeta(BaseModel):
    """The source image."""

    width: int = Field(description="Pixels, after EXIF orientation.", examples=[1600])
    height: int = Field(description="Pixels, after EXIF orientation.", examples=[1200])
    format: str = Field(description="File format.", examples=["jpeg"])
    bytes: int = Field(description="Size of the file as downloaded.", examples=[482113])
    cached: bool = Field(description="True if it came from the cache.", examples=[False])
    stale: bool = Field(
        description="True if the cached copy has expired and the origin could not be reached.",
        examples=[False],
    )


class LoraMeta(BaseModel):
    """An adapter that was applied."""

    name: str = Field(description="Its name here.", examples=["duotone"])
    scale: float = Field(description="How strongly.", examples=[1.0])
    sha256: str = Field(description="Hash of its file.", examples=["9c56cc51b374c3ba18921..."])
    layers: int = Field(description="Layers it changes.", examples=[720])
    merged: bool = Field(
        default=False, description="True if it is merged into the weights.", examples=[False]
    )


class Geometry(BaseModel):
    """The part of the source that was edited, and the size it was edited at."""

    source: tuple[int, int] = Field(
        description="Width and height of the image whose shape the result has, as it was edited.",
        examples=[[1600, 1200]],
    )
    box: tuple[int, int, int, int] = Field(
        description="Left, top, right and bottom of the part that was edited, in pixels of that image.",
        examples=[[0, 0, 1600, 1200]],
    )
    working: tuple[int, int] = Field(
        description="Width and height that this part was edited at.", examples=[[1184, 896]]
    )


class Timings(BaseModel):
    """Duration of each phase in milliseconds."""

    queue: float = Field(description="Wait for the model.", examples=[0.1])
    fetch: float = Field(description="Cache lookup and download.", examples=[212.4])
    source_decode: float = Field(description="Source file to pixels.", examples=[21.0])
    prepare: float = Field(description="Resizing, image processor, tokens.", examples=[31.0])
    condition: float = Field(description="Instruction and image to embeddings.", examples=[204.0])
    denoise: float = Field(description="All steps.", examples=[18210.7])
    vae_decode: float = Field(description="Latents to pixels.", examples=[78.3])
    encode: float = Field(description="To the output format.", examples=[88.0])
    store: float = Field(description="Upload of the result.", examples=[131.9])
    total: float = Field(description="From acceptance to the response.", examples=[18950.2])


class Meta(BaseModel):
    """The effective value of every parameter, and what the edit took."""

    request_id: str = Field(
        description="The caller's X-Request-ID, or the job id; in every log line of this edit.",
        examples=["8f14e45fceea467f9575a4c1f5ab0f11"],
    )
    job_id: str = Field(
        description="Id of the job; part of the result's object key unless it is reused.",
        examples=["8f14e45fceea467f9575a4c1f5ab0f11"],
    )
    seed: int = Field(description="Seed used.", examples=[424242])
    num_inference_steps: int = Field(description="Denoising steps.", examples=[30])
    guidance_scale: float = Field(description="Guidance scale used.", examples=[7.5])
    scheduler: str = Field(description="Scheduler used.", examples=["Euler"])
    width: int = Field(description="Pixels of the result.", examples=[1184])
    height: int = Field(description="Pixels of the result.", examples=[880])
    strength: float = Field(
        description="How far from the source the denoising started; below 1 the first steps did not run.",
        examples=[1.0],
    )
    geometry: Geometry = Field(description="What was edited, at what size.")
    model: str = Field(description="Model id or directory.", examples=["Qwen/Qwen-Image-Edit"])
    revision: str = Field(description="Revision of the model.", examples=["ac7f9318f633"])
    dtype: str = Field(description="Precision of the transformer.", examples=["float16"])
    memory_plan: str = Field(
        description="Which weights are resident, which are streamed.", examples=["resident"]
    )
    attention: str = Field(description="Attention kernel.", examples=["fa3"])
    quantization: str = Field(
        description="How weights are stored: none (16 bits), or the encoding they are packed to.",
        examples=["none"],
    )
    compiled: bool = Field(False, description="Whether compiled code ran.", examples=[True])
    profile: str = Field(
        default="full", description="Profile used; full is the checkpoint's own.", examples=["full"]
    )
    loras: list[LoraMeta] = Field(
        default=[],
        description="The adapters that were applied, the profile's own among them.",
        examples=[[{"name": "duotone", "scale": 1.0, "sha256": "9c56cc51b374...", "layers": 60}]],
    )
    source: SourceMeta = Field(description="The source image, or the first of several.")
    sources: list[SourceMeta] = Field(
        description="All source images, in the order of the request.",
        examples=[[{name: (of.examples or [])[0] for name, of in SourceMeta.model_fields.items()}]],
    )
    timings_ms: Timings = Field(description="Milliseconds of each phase.")
    reused: bool = Field(
        default=False,
        description="True if an equal earlier request made this result; nothing was edited.",
        examples=[False],
    )
    notes: list[str] = Field(
        description="Where the edit differs from the request, and why.",
        examples=[["png is lossless: output_quality is ignored"]],
    )


class Result(BaseModel):
    """The edited image in the store."""

    presigned_url: str = Field(
        description="URL of the image; needs no key and works until expires_at.",
        examples=["https://s3.us-west-000.backblazeb2.com/..."],
    )
    bucket: str = Field(description="The bucket, or local.", examples=["YOUR_BUCKET"])
    object_key: str = Field(
        description="Object key of the image.",
        examples=["qwen-image-edit/results/9c56.../8f14e45fceea467f9575a4c1f5ab0f11.png"],
    )
    content_type: str = Field(description="Media type of the image.", examples=["image/png"])
    expires_in: int = Field(description="Lifetime of the link in seconds.", examples=[86400])
    expires_at: str = Field(
        description="End of the link's lifetime, RFC 3339 in UTC.",
        examples=["2026-11-24T18:00:00Z"],
        json_schema_extra={"format": "date-time"},
    )
    b64_json: str | None = Field(
        default=None,
        exclude_if=lambda text: text is None,
        description="The file as base64, where response_format is b64_json.",
        examples=["iVBORw0KGgo..."],
    )
    meta: Meta = Field(description="Effective parameters and timings.")


_OF_EACH = ("condition", "denoise", "vae_decode", "encode", "store")
"""Phases that each of several images has of its own; they share the others."""


class EditResult(BaseModel):
    """The response of a successful edit."""

    status: Literal["success"] = Field(
        default="success", description="Always success.", examples=["success"]
    )
    result: Result = Field(description="The edited image, or the first of several.")
    results: list[Result] | None = Field(
        default=None,
        exclude_if=lambda results: results is None,
        description="All edited images in the order of their seeds, where num_images is above 1.",
        examples=[None],
    )

    @property
    def all(self) -> list[Result]:
        """The edited images in the order of their seeds."""
        return self.results or [self.result]

    def change_each(self, change: Callable[[Result], Result]) -> Self:
        """Return a copy in which each edited image is what `change` makes of it."""
        changed = [change(result) for result in self.all]
        results = changed if self.results else None
        return self.model_copy(update={"result": changed[0], "results": results})

    def sum_timings(self) -> dict[str, Any]:
        """Return the milliseconds of each phase of all images together."""
        timings = [result.meta.timings_ms.model_dump() for result in self.all]
        return timings[0] | {phase: sum(one[phase] for one in timings) for phase in _OF_EACH}


class ErrorDetails(BaseModel):
    """The error for programs; some codes add fields of their own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    code: str = Field(description="Stable name of the error.", examples=["source_too_large"])
    results: list[Result] | None = Field(
        default=None,
        exclude_if=lambda results: results is None,
        description="Of several images, those that were stored before one failed.",
        examples=[None],
    )
    retryable: bool = Field(description="The same request may succeed later.", examples=[False])
    request_id: str = Field(
        description="Id of the request in the log.",
        examples=["8f14e45fceea467f9575a4c1f5ab0f11"],
    )


ErrorType = Literal[
    "BadInput",
    "DownloadFailed",
    "CacheReadFailed",
    "ModelError",
    "StorageError",
    "Unauthorized",
    "Overloaded",
    "NotReady",
    "DeadlineExceeded",
    "Cancelled",
    "InternalError",
]


class ErrorInfo(BaseModel):
    """The error."""

    type: ErrorType = Field(description="Category of the error.", examples=["BadInput"])
    message: str = Field(
        description="For people; may change.",
        examples=["the image is over 26214400 bytes (MAX_IMAGE_BYTES)"],
    )
    details: ErrorDetails = Field(description="For programs.")


class ErrorBody(BaseModel):
    """The response of a failure."""

    status: Literal["error"] = Field(
        default="error", description="Always error.", examples=["error"]
    )
    error: ErrorInfo = Field(description="The error.")

    @property
    def all(self) -> list[Result]:
        """The edited images that were stored before one failed."""
        return self.error.details.results or []

    def change_each(self, change: Callable[[Result], Result]) -> Self:
        """Return a copy in which each edited image is what `change` makes of it."""
        if not self.all:
            return self
        body = self.model_copy(deep=True)
        body.error.details.results = [change(result) for result in self.all]
        return body


class Progress(BaseModel):
    """Progress of a running edit."""

    stage: Literal["queue", "source", "condition", "denoise", "vae_decode", "store"] = Field(
        description="Current phase.", examples=["denoise"]
    )
    step: int = Field(default=0, description="Steps done, of all results.", examples=[12])
    steps: int = Field(default=0, description="Steps in all, of all results.", examples=[30])
    place: int = Field(
        default=0, description="In the queue: how many edits are before this one.", examples=[2]
    )


def error_body(error: EditError, *, request_id: str) -> ErrorBody:
    """Build the response for `error`, without its `context`."""
    details: dict[str, Any] = {
        **error.details,
        "code": error.code,
        "retryable": error.retryable,
        "request_id": request_id,
    }
    return ErrorBody.model_validate(
        {"error": {"type": error.type, "message": error.message, "details": details}}
    )


def restore_error(body: ErrorBody) -> EditError:
    """Return the error of a response as the class it was raised as.

    A code unknown to this version gives an `EditError` with the code in `details`.
    """
    details = dict(body.error.details)  # results stay models
    if details["results"] is None:
        del details["results"]
    known = {cls.code: cls for cls in error_classes()}
    return known.get(body.error.details.code, EditError)(body.error.message, details=details)
