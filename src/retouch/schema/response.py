"""What an answer says: the envelopes of success and of failure, and progress."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from retouch.errors import EditError


class SourceMeta(BaseModel):
    """What the source image was."""

    width: int = Field(title="Width", description="Pixels, after orientation.", examples=[1600])
    height: int = Field(title="Height", description="Pixels, after orientation.", examples=[1200])
    format: str = Field(title="Format", description="Its file format.", examples=["jpeg"])
    bytes: int = Field(title="Bytes", description="Its size as downloaded.", examples=[482113])
    cached: bool = Field(
        title="Cached", description="True if nothing was downloaded.", examples=[False]
    )
    stale: bool = Field(
        title="Stale",
        description="True if it is past its freshness and the origin could not be asked.",
        examples=[False],
    )


class Timings(BaseModel):
    """Milliseconds of each phase."""

    queue: float = Field(title="Queue", description="Waiting for the model.", examples=[0.1])
    fetch: float = Field(title="Fetch", description="Cache look-up and download.", examples=[212.4])
    source_decode: float = Field(title="Source decode", description="To pixels.", examples=[21.0])
    prepare: float = Field(
        title="Prepare", description="Resizing, image processor, tokens.", examples=[31.0]
    )
    condition: float = Field(
        title="Condition", description="Instruction and image to embeddings.", examples=[204.0]
    )
    denoise: float = Field(title="Denoise", description="All steps.", examples=[18210.7])
    vae_decode: float = Field(title="VAE decode", description="Latents to pixels.", examples=[78.3])
    encode: float = Field(title="Encode", description="To the output format.", examples=[88.0])
    store: float = Field(title="Store", description="Upload of the result.", examples=[131.9])
    total: float = Field(title="Total", description="From acceptance on.", examples=[18950.2])


class Meta(BaseModel):
    """What was done, in full: the effective value of everything."""

    request_id: str = Field(
        title="Request id",
        description="The caller's X-Request-ID, or the job id; also in every log line of this edit.",
        examples=["8f14e45fceea467f9575a4c1f5ab0f11"],
    )
    job_id: str = Field(
        title="Job id",
        description="Names the result.",
        examples=["8f14e45fceea467f9575a4c1f5ab0f11"],
    )
    seed: int = Field(title="Seed", description="The seed used.", examples=[424242])
    num_inference_steps: int = Field(title="Steps", description="Steps taken.", examples=[30])
    guidance_scale: float = Field(title="Guidance", description="Guidance used.", examples=[7.5])
    scheduler: str = Field(title="Scheduler", description="Scheduler used.", examples=["Euler"])
    width: int = Field(title="Width", description="Pixels of the result.", examples=[1184])
    height: int = Field(title="Height", description="Pixels of the result.", examples=[880])
    model: str = Field(title="Model", description="Model used.", examples=["Qwen/Qwen-Image-Edit"])
    revision: str = Field(title="Revision", description="Its revision.", examples=["ac7f9318f633"])
    dtype: str = Field(title="Precision", description="Of the transformer.", examples=["float16"])
    memory_plan: str = Field(
        title="Memory plan", description="What is resident, what streams.", examples=["resident"]
    )
    source: SourceMeta = Field(title="Source", description="The source image.")
    timings_ms: Timings = Field(title="Timings", description="Milliseconds of each phase.")
    notes: list[str] = Field(
        title="Notes",
        description="Where the edit differs from what was asked, and why.",
        examples=[["png is lossless: output_quality is ignored"]],
    )


class Result(BaseModel):
    """Where the edited image is."""

    presigned_url: str = Field(
        title="Presigned URL",
        description="Opens the image until expires_at, with no key.",
        examples=["https://s3.us-west-000.backblazeb2.com/..."],
    )
    bucket: str = Field(
        title="Bucket", description="The bucket, or local.", examples=["YOUR_BUCKET"]
    )
    object_key: str = Field(
        title="Object key",
        description="The image's key in the bucket.",
        examples=["qwen-image-edit/results/9c56.../8f14e45fceea467f9575a4c1f5ab0f11.png"],
    )
    content_type: str = Field(
        title="Content type", description="Of the image.", examples=["image/png"]
    )
    expires_in: int = Field(
        title="Expires in", description="Seconds the link lives.", examples=[86400]
    )
    expires_at: str = Field(
        title="Expires at",
        description="When the link ends, RFC 3339 in UTC.",
        examples=["2026-11-24T18:00:00Z"],
        json_schema_extra={"format": "date-time"},
    )
    meta: Meta = Field(title="Meta", description="What was done.")


class EditResult(BaseModel):
    """The envelope of success."""

    status: Literal["success"] = Field(
        default="success", title="Status", description="Always success.", examples=["success"]
    )
    result: Result = Field(title="Result", description="Where the edited image is.")


class ErrorDetails(BaseModel):
    """The fault in a form for programs; some codes add fields of their own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue] = Field(init=False)

    code: str = Field(
        title="Code", description="Stable name of the fault.", examples=["source_too_large"]
    )
    retryable: bool = Field(
        title="Retryable", description="The same request may succeed later.", examples=[False]
    )
    request_id: str = Field(
        title="Request id",
        description="To find the log lines by.",
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
    """What went wrong."""

    type: ErrorType = Field(title="Type", description="Kind of fault.", examples=["BadInput"])
    message: str = Field(
        title="Message",
        description="For people; may change.",
        examples=["the image is over 26214400 bytes (MAX_IMAGE_BYTES)"],
    )
    details: ErrorDetails = Field(title="Details", description="For programs.")


class ErrorBody(BaseModel):
    """The envelope of every failure."""

    status: Literal["error"] = Field(
        default="error", title="Status", description="Always error.", examples=["error"]
    )
    error: ErrorInfo = Field(title="Error", description="What went wrong.")


class Progress(BaseModel):
    """A step of an edit under way, sent while a caller waits."""

    stage: Literal["queue", "source", "condition", "denoise", "vae_decode", "store"] = Field(
        title="Stage", description="What is being done.", examples=["denoise"]
    )
    step: int = Field(default=0, title="Step", description="Steps done.", examples=[12])
    steps: int = Field(default=0, title="Steps", description="Of so many.", examples=[30])


def error_body(error: EditError, *, request_id: str) -> ErrorBody:
    """Put `error` in the envelope; nothing of its `context` is in it."""
    details: dict[str, Any] = {
        **error.details,
        "code": error.code,
        "retryable": error.retryable,
        "request_id": request_id,
    }
    return ErrorBody.model_validate(
        {"error": {"type": error.type, "message": error.message, "details": details}}
    )
