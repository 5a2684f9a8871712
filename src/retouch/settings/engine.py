"""The settings that say how the model is kept and run."""

from typing import Literal

from pydantic import Field

from retouch.settings.environment import EnvironmentSettings


class EngineSettings(EnvironmentSettings):
    """The part of `Settings` about precision, storage and kernels, and what is made room for."""

    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="precision of the model on a GPU; on a CPU it is float32"
    )
    max_result_pixels: int = Field(
        0,
        ge=0,
        le=2048 * 2048,
        description="make room for results of up to this many pixels; 0: as planned",
    )
    quantization: Literal["auto", "none", "int8", "fp8", "nf4"] = Field(
        "auto", description="how weights are stored; auto: in 16 bits where they fit, else packed"
    )
    attention_backend: str = Field(
        "auto",
        description="attention kernel: auto measures at the start; fa3, or a name in diffusers",
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="compile the model: faster edits; auto: only where its code is cached",
    )
    prompt_cache_mib: int = Field(
        64, ge=0, le=65536, description="host memory for embeddings of repeated prompts, in MiB"
    )
