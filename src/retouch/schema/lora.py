"""The adapters that a request chooses."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from retouch.net.url import parse_url

MAX_LORAS = 4
MAX_LORA_SCALE = 4.0
LORA_NAME = r"^[a-z0-9_-]{1,64}$"
_URL = "^[hH][tT][tT][pP][sS]?://"


def _require_url(text: str) -> str:
    parse_url(text)
    return text


def _drop_default(schema: dict[str, Any]) -> None:
    schema.pop("default")  # which stands for none, and is not a value that may be sent


_ONE_FORM: JsonDict = {
    "oneOf": [
        {
            "required": ["name"],
            "not": {"anyOf": [{"required": ["url"]}, {"required": ["sha256"]}]},
        },
        {"required": ["url", "sha256"], "not": {"required": ["name"]}},
    ]
}


class Lora(BaseModel):
    """An adapter: by its name among those that are loaded, or by its file's URL and SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, json_schema_extra=_ONE_FORM)

    name: Annotated[str, Field(pattern=LORA_NAME)] = Field(
        default="",
        description="Name of a loaded adapter.",
        examples=["duotone"],
        json_schema_extra=_drop_default,
    )
    url: Annotated[str, Field(pattern=_URL), AfterValidator(_require_url)] = Field(
        default="",
        description="Instead of a name, where the operator allows it: URL of a safetensors file.",
        examples=["https://example.com/sketch.safetensors"],
        json_schema_extra=_drop_default,
    )
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$"), AfterValidator(str.lower)] = Field(
        default="",
        description="The SHA-256 that the file at the URL must have.",
        examples=["9c56cc51b374c3ba189210d5b6d4bf57790d351c96c47c02190ecf1e430635ab"],
        json_schema_extra=_drop_default,
    )
    scale: (
        Annotated[float, Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, allow_inf_nan=False)] | None
    ) = Field(
        default=None,
        description="How strongly it is applied; 0 is not at all. Null: as the operator set it, else 1.",
        examples=[1.0],
    )

    @property
    def key(self) -> str:
        """What it is called in answers: its name, or the start of its file's SHA-256."""
        return self.name or lora_key(self.sha256)

    @model_validator(mode="after")
    def _require_one_form(self) -> Self:
        if bool(self.name) == bool(self.url) or bool(self.url) != bool(self.sha256):
            raise ValueError("must have either a name, or a url and its sha256")
        return self


def lora_key(sha256: str) -> str:
    """Return what an adapter is called that has no name: it never equals one.

    >>> lora_key("9c56cc51b374c3ba")
    'sha256:9c56cc51b374'
    """
    return f"sha256:{sha256[:12]}"


def require_distinct(loras: list[Lora]) -> list[Lora]:
    """Return the choice.

    Raises:
        ValueError: an adapter is named twice.
    """
    names = [lora.key for lora in loras]
    if len(set(names)) < len(names):
        raise ValueError("must name each adapter once")
    return loras
