"""The answer of `GET /info`: what is loaded, which a form needs before the first request."""

from pydantic import BaseModel, Field


class InfoDefaults(BaseModel):
    """What the loaded model uses for what a request leaves out."""

    num_inference_steps: int = Field(description="Denoising steps.", examples=[30])
    guidance_scale: float = Field(description="Guidance scale.", examples=[4.0])
    area_px: int = Field(description="Width x height of a result.", examples=[1048576])


class InfoLora(BaseModel):
    """An adapter that requests may name."""

    name: str = Field(description="Its name in loras.", examples=["duotone"])
    scale: float = Field(description="Used where a request gives none.", examples=[1.0])
    always: bool = Field(
        description="Applied also to requests that do not name it; their scale 0 leaves it out.",
        examples=[False],
    )
    merged: bool = Field(description="Merged into the weights at its scale.", examples=[False])


class ServiceInfo(BaseModel):
    """The loaded model and its limits."""

    version: str = Field(description="Version of this service.", examples=["1.0.0"])
    model: str = Field(description="Model id or directory.", examples=["Qwen/Qwen-Image-Edit"])
    revision: str = Field(description="Revision of the model.", examples=["ac7f9318f633"])
    dtype: str = Field(description="Precision of the transformer.", examples=["float16"])
    memory_plan: str = Field(
        description="Which weights are resident, which are streamed.", examples=["resident"]
    )
    attention: str = Field(description="Attention kernel.", examples=["fa3"])
    defaults: InfoDefaults = Field(description="For what a request leaves out.")
    profiles: list[str] = Field(
        description="Profiles that a request may choose; the first is the default.",
        examples=[["full", "lightning-8"]],
    )
    max_images: int = Field(description="The most images of one edit.", examples=[3])
    max_areas_px: list[int] = Field(
        description="The most width x height may be, from one image, from two and so on.",
        examples=[[4194304, 4194304, 3145728]],
    )
    max_image_bytes: int = Field(
        description="The largest file of a source image.", examples=[26214400]
    )
    loras: list[InfoLora] = Field(
        description="The loaded adapters.",
        examples=[[{"name": "duotone", "scale": 1.0, "always": False, "merged": False}]],
    )
    examples: list[str] = Field(
        description="Instructions that suit the loaded model.",
        examples=[["turn it into a watercolor painting"]],
    )
    notes: list[str] = Field(description="What to know about the loaded model.", examples=[[]])
