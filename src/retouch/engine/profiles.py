"""Profiles: a LoRA file or checkpoint with the steps, guidance and schedule that it was trained for.

Importing this module imports no torch.
"""

from codecs import BOM_UTF8
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from retouch.errors import ModelError

FULL = "full"
"""The profile of the checkpoint's own defaults, which fixes nothing."""
_NAME = r"^[a-z0-9_-]{1,64}$"


class ProfileFile(BaseModel):
    """A profile in PROFILES_FILE, and the built-in ones.

    `file` is a path, a hub's `owner/repository/file` or an https URL; without it the checkpoint itself is
    the few-step model. `shift` fixes the schedule's shift whatever the size; null is the checkpoint's.
    `family` is edit, 2509 or 2511 where it fits one of them only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(ge=1, le=50)
    guidance_scale: float = Field(default=1.0, ge=1, le=20)
    shift: float | None = Field(default=None, gt=0, le=100)
    file: str = ""
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    scale: float = Field(default=1.0, ge=-4, le=4)
    family: str = Field(default="", pattern="^(edit|2509|2511)?$")


class Expected(BaseModel):
    """What is known of a published file: its bytes, and how its SHA-256 may begin."""

    model_config = ConfigDict(frozen=True)

    size_bytes: int = 0
    sha256_starts: tuple[str, ...] = ()


_OWNER = "lightx2v"
_EDIT = f"{_OWNER}/Qwen-Image-Lightning"
_2509 = f"{_EDIT}/Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning"
_2511 = f"{_OWNER}/Qwen-Image-Edit-2511-Lightning"
_FILES: Mapping[tuple[str, int], tuple[str, Expected]] = {
    # The notes on Edit's two files do not say which hash is whose; the name does the rest.
    ("edit", 4): (
        f"{_EDIT}/Qwen-Image-Edit-Lightning-4steps-V1.0.safetensors",
        Expected(sha256_starts=("e752ea15", "5910104f")),
    ),
    ("edit", 8): (
        f"{_EDIT}/Qwen-Image-Edit-Lightning-8steps-V1.0.safetensors",
        Expected(sha256_starts=("e752ea15", "5910104f")),
    ),
    ("2509", 4): (f"{_2509}-4steps-V1.0-bf16.safetensors", Expected()),
    ("2509", 8): (f"{_2509}-8steps-V1.0-bf16.safetensors", Expected()),
    ("2511", 4): (
        f"{_2511}/Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
        Expected(sha256_starts=("22226e8d",)),
    ),
    ("2511", 8): (
        f"{_2511}/Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16.safetensors",
        Expected(size_bytes=849_608_296, sha256_starts=("a9e81a58",)),
    ),
}
LIGHTNING_SHIFT = 3.0
"""The authors' scheduler (base and maximal shift ln 3, exponential) is a static shift of 3:
ModelTC/Qwen-Image-Lightning, generate_with_diffusers.py."""
LIGHTNING_RANK, LIGHTNING_ALPHA, LIGHTNING_LAYERS = 64, 8.0, 720
BUILT_IN = {"lightning-8": 8, "lightning-4": 4}
"""Steps by name."""


def built_in_profile(name: str, family: str) -> tuple[ProfileFile, Expected]:
    """Return a built-in profile for a model of `family`, and what is known of its file.

    >>> built_in_profile("lightning-8", "2511")[0].steps
    8
    """
    steps = BUILT_IN[name]
    file, expected = _FILES[family, steps]
    return ProfileFile(steps=steps, shift=LIGHTNING_SHIFT, file=file, family=family), expected


_Profiles = TypeAdapter(dict[Annotated[str, Field(pattern=_NAME)], ProfileFile])


def read_profiles(path: str) -> dict[str, ProfileFile]:
    """Read PROFILES_FILE: a JSON object of profiles by name. No path means none.

    Raises:
        ModelError: it cannot be read, or a profile is wrong; the message names it.
    """
    if not path:
        return {}
    try:
        body = Path(path).expanduser().read_bytes().removeprefix(BOM_UTF8)  # Notepad writes one
        profiles = _Profiles.validate_json(body)
    except OSError as error:
        raise ModelError(f"PROFILES_FILE cannot be read: {error.strerror}") from error
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise ModelError(f"PROFILES_FILE: {where}: {fault['msg']}") from error
    for name, profile in profiles.items():
        if name in {FULL, *BUILT_IN}:
            raise ModelError(f"PROFILES_FILE: {name} is built in: choose another name")
        if profile.file and not profile.sha256:
            raise ModelError(f"PROFILES_FILE: {name}: give the file's sha256")
    return profiles
