"""Generation defaults stored beside a checkpoint (`retouch_preset.json`)."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retouch.errors import ModelError

PRESET_FILE = "retouch_preset.json"
# Kinds of edit that the cards of Qwen-Image-Edit show: scene, removal, style, text, light.
_EXAMPLES = (
    "change the background to a beach at sunset",
    "remove the people in the background",
    "turn it into a watercolor painting",
    'change the text on the sign to "OPEN"',
    "make it a snowy winter evening",
)


class PresetFile(BaseModel):
    """`retouch_preset.json`: generation defaults where they differ from the full model's.

    With `condition_as_result` the condition image has the size of the result instead of
    `condition_area_px`, for weights that compare the two pixel by pixel. With `plain_prompts` prompts
    are read in small letters, without symbols, for weights that have seen no others. `examples` are
    instructions that the weights follow well.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    steps: int = Field(default=30, ge=1, le=50)
    guidance_scale: float = Field(default=4.0, ge=1, le=20)
    area_px: int = Field(default=1024 * 1024, ge=64 * 64)
    condition_area_px: int = Field(default=1024 * 1024, ge=64 * 64)
    condition_as_result: bool = False
    plain_prompts: bool = False
    guided: bool = True
    notes: tuple[str, ...] = ()
    examples: tuple[str, ...] = _EXAMPLES


def read_preset(folder: Path) -> PresetFile:
    """Return the generation defaults stored in a checkpoint folder, or the full model's.

    Raises:
        ModelError: the file is malformed.
    """
    path = folder / PRESET_FILE
    if not path.exists():
        return PresetFile()
    try:
        return PresetFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise ModelError(
            f"{PRESET_FILE}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        ) from error
