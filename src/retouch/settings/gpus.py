"""The settings that say how many GPUs edit, and what memory each process may take."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from retouch.settings.environment import EnvironmentSettings

_MAX_GPUS = 64


def _require_gpus(value: object) -> object:
    text = str(value)
    if text == "all":
        return text
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_GPUS):
        raise ValueError(f"must be all, or a number from 1 to {_MAX_GPUS}")
    return int(text)


class GpuSettings(EnvironmentSettings):
    """The part of `Settings` about GPUs and their processes."""

    gpus: Annotated[int | Literal["all"], BeforeValidator(_require_gpus)] = Field(
        1, description="GPUs of the HTTP service, each with a process of its own; all: every GPU"
    )
    parallel: Literal["none", "guidance"] = Field(
        "none", description="guidance: a process edits on two GPUs, a guidance branch on each"
    )
    gpu_memory_gib: float = Field(
        0, ge=0, le=1024, description="GPU memory to use; 0: what is free"
    )
    host_memory_gib: float = Field(
        0,
        ge=0,
        le=65536,
        description="host memory for weights; 0: a process's share of what is free",
    )

    @property
    def gpus_each(self) -> int:
        """GPUs of each process that edits."""
        return 2 if self.parallel == "guidance" else 1
