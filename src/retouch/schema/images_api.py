"""OpenAI's images API: its options in a request, its answer and its error.

As openai-python 3.57 sends and reads them (openai/types/images_response.py and its neighbours).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from retouch.schema.fields import ResponseFormat, ToInteger

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]


class ImageOptions(BaseModel):
    """Fields of OpenAI's that no edit of ours has; other fields are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    size: Annotated[str, Field(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$")] = Field(
        default="auto",
        description="WIDTHxHEIGHT, both 64 to 2048 and multiples of 16, or auto: the source's shape.",
        examples=["auto"],
    )
    quality: Quality = Field(
        default="auto",
        description="The profile: low has the fewest steps of those loaded, medium 8 or the next "
        "above, high and above the most; auto is the default.",
        examples=["auto"],
    )
    background: Literal["auto", "opaque"] = Field(
        default="auto", description="Results are opaque.", examples=["auto"]
    )
    output_compression: Annotated[int, Field(ge=0, le=100), ToInteger] | None = Field(
        default=None, description="Quality of jpeg, webp and avif.", examples=[90]
    )
    response_format: ResponseFormat = Field(
        default="b64_json", description="url: a signed link.", examples=["b64_json"]
    )
    stream: bool = Field(
        default=False, description="Answer by server-sent events.", examples=[False]
    )
    partial_images: Annotated[int, Field(ge=0, le=3), ToInteger] = Field(
        default=0,
        description="Intermediate images in a stream; fewer come where there are few steps.",
        examples=[2],
    )


class TokenDetails(BaseModel):
    """Tokens of the input by kind."""

    image_tokens: int = Field(description="One for 16 x 16 pixels.", examples=[4096])
    text_tokens: int = Field(description="By the model's tokenizer.", examples=[9])


class Usage(BaseModel):
    """What an edit took, in tokens."""

    input_tokens: int = Field(description="Of images and text.", examples=[4105])
    input_tokens_details: TokenDetails = Field(description="The same by kind.")
    output_tokens: int = Field(description="One for 16 x 16 pixels.", examples=[4096])
    total_tokens: int = Field(description="Input and output.", examples=[8201])


class ImageData(BaseModel):
    """One image: as base64, or by its link."""

    b64_json: str | None = Field(
        default=None,
        exclude_if=lambda text: text is None,
        description="The file as base64.",
        examples=["iVBORw0KGgo..."],
    )
    url: str | None = Field(
        default=None,
        exclude_if=lambda text: text is None,
        description="A signed link.",
        examples=["https://s3.us-west-000.backblazeb2.com/..."],
    )


class ImagesAnswer(BaseModel):
    """The answer of `POST /v1/images/edits`."""

    created: int = Field(description="Unix time in seconds.", examples=[1795817473])
    data: list[ImageData] = Field(description="The edited images.", examples=[[{"b64_json": "…"}]])
    background: Literal["opaque"] = Field(
        default="opaque", description="Always opaque.", examples=["opaque"]
    )
    output_format: str = Field(description="File format of the images.", examples=["png"])
    size: str = Field(description="WIDTHxHEIGHT.", examples=["1024x1024"])
    usage: Usage = Field(description="What it took.")


class ImagesFault(BaseModel):
    """An error in OpenAI's terms."""

    message: str = Field(description="For people.", examples=["prompt: must not be blank"])
    type: str = Field(description="Category of the error.", examples=["invalid_request_error"])
    param: str | None = Field(description="The first wrong field.", examples=["prompt"])
    code: str = Field(description="As of /edit.", examples=["invalid_request"])


class ImagesError(BaseModel):
    """The response of a failure under `/v1`."""

    error: ImagesFault = Field(description="The error.")


class Model(BaseModel):
    """A model that edits."""

    id: str = Field(description="As meta.model.", examples=["Qwen/Qwen-Image-Edit"])
    object: Literal["model"] = Field(
        default="model", description="Always model.", examples=["model"]
    )
    created: int = Field(default=0, description="Always 0.", examples=[0])
    owned_by: str = Field(default="retouch", description="Always retouch.", examples=["retouch"])


class ModelList(BaseModel):
    """The answer of `GET /v1/models`."""

    object: Literal["list"] = Field(default="list", description="Always list.", examples=["list"])
    data: list[Model] = Field(description="What is loaded.", examples=[[]])
