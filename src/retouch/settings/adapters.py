"""The settings of LoRA adapters and profiles."""

from pydantic import Field, field_validator

from retouch.settings.environment import EnvironmentSettings
from retouch.settings.loras import Lora, LoraSetting
from retouch.settings.values import CommaList


class AdapterSettings(EnvironmentSettings):
    """Which adapters and profiles requests may choose, and whether they may bring their own."""

    loras: CommaList[Lora] = Field(
        (), description="LoRA adapters, by comma: [!]name=source[#sha256][@scale]"
    )
    merge_loras: bool = Field(
        default=False, description="merge the entries with ! into the weights, see DOCS.md"
    )
    allow_lora_urls: bool = Field(
        default=False, description="let requests name LoRA files by URL and SHA-256"
    )
    lora_cache_gib: float = Field(
        4, ge=0.25, le=256, description="GiB of host memory for LoRA files at URLs"
    )
    profiles: CommaList[str] = Field(
        ("full",), description="profiles to offer, by comma, the default first"
    )
    profiles_file: str = Field("", description="JSON file of further profiles")

    @field_validator("loras")
    @classmethod
    def _require_distinct_names(cls, loras: tuple[LoraSetting, ...]) -> tuple[LoraSetting, ...]:
        names = [lora.name for lora in loras]
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"names {twice} twice")
        return loras

    @property
    def lora_url_bytes(self) -> int:
        """Host memory for LoRA files at URLs: none where they are not allowed."""
        return int(self.lora_cache_gib * 2**30) if self.allow_lora_urls else 0
