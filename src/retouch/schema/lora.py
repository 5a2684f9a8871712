"""The adapters that a request chooses."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_LORAS = 4
MAX_LORA_SCALE = 4.0
LORA_NAME = r"^[a-z0-9_-]{1,64}$"


class Lora(BaseModel):
    """An adapter by its name among those that are loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=LORA_NAME)] = Field(
        description="Name of a loaded adapter.", examples=["duotone"]
    )
    scale: (
        Annotated[float, Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, allow_inf_nan=False)] | None
    ) = Field(
        default=None,
        description="How strongly it is applied; 0 is not at all. Null: as the operator set it.",
        examples=[1.0],
    )


def require_distinct(loras: list[Lora]) -> list[Lora]:
    """Return the choice.

    Raises:
        ValueError: an adapter is named twice.
    """
    names = [lora.name for lora in loras]
    if len(set(names)) < len(names):
        raise ValueError("must name each adapter once")
    return loras
