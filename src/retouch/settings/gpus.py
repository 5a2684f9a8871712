"""The settings that say how many GPUs edit, and what memory each process may take."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from retouch.settings.environment import EnvironmentSettings

_MAX_GPUS = 64
Parallel = Literal["none", "guidance", "ulysses", "guidance,ulysses"]
PROCESSES: Mapping[Parallel, int] = {
    "none": 1,
    "guidance": 2,
    "ulysses": 2,
    "guidance,ulysses": 4,
}
"""How many processes edit together, with a GPU each."""


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
    parallel: Parallel = Field(
        "none",
        description="how several GPUs share an edit: guidance (a branch on each of two), ulysses (attention heads over two), or both over four",
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
        return PROCESSES[self.parallel]
