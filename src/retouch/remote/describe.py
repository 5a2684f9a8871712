"""What the server has loaded: its model's name, and all that another retouch says about itself."""

from collections.abc import Sequence
from http import HTTPStatus

from pydantic import BaseModel, Field, ValidationError

from retouch.editing.ports import AdapterInfo, EngineInfo, GenerationDefaults, ProfileInfo
from retouch.errors import EngineDenied, EngineUnavailable, ModelError, one_line
from retouch.remote.answer import to_error
from retouch.remote.server import Answer, Server
from retouch.schema import InfoDefaults, ServiceInfo

_MAX_BYTES = 1 << 20
_MAX_NAME = 200
_MAX_TEXTS, _MAX_TEXT = 64, 2000
_MAX_STEPS, _MAX_GUIDANCE = 1000, 20
_FULL = "full"
_NOT_TOLD = "unknown"
# Of Qwen-Image-Edit-2511's card, for a server that does not say what it uses.
_DEFAULTS = GenerationDefaults(steps=40, guidance_scale=4.0, area_px=1024 * 1024)
_MAX_AREAS_PX = (2048 * 2048,) * 3
MEMORY_PLAN = "remote"


class _Model(BaseModel):
    id: str = Field(max_length=_MAX_NAME)


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


async def describe(server: Server, *, model: str = "") -> tuple[EngineInfo, bool]:
    """Return what the server says of itself, and whether it is another retouch.

    `model` is the name that the operator gave, or else it is the first that the server lists.

    Raises:
        EngineUnavailable: it is not up yet.
        EngineDenied: it refuses the key.
        ModelError: it is a retouch whose limits or defaults cannot be used.
    """
    listed = await server.get("/v1/models", max_bytes=_MAX_BYTES)
    if isinstance(error := to_error(listed), EngineDenied | EngineUnavailable):
        raise error
    told = await server.get("/info", max_bytes=_MAX_BYTES)
    try:
        info = ServiceInfo.model_validate_json(told.body)
    except ValidationError:
        return _describe_stranger(model or _read_name(listed, server)), False
    return _describe_retouch(info), True


def _read_name(answer: Answer, server: Server) -> str:
    """Return the first model's name, or the server's where it lists none."""
    try:
        name = _Models.model_validate_json(answer.body).data[0].id
    except ValidationError:
        name = ""
    is_usable = answer.status == HTTPStatus.OK and name.isprintable()
    return (name if is_usable else "") or server.url.host_port


def _describe_stranger(model: str) -> EngineInfo:
    return EngineInfo(
        model=model,
        revision=_NOT_TOLD,
        dtype=_NOT_TOLD,
        memory_plan=MEMORY_PLAN,
        attention=_NOT_TOLD,
        quantization=_NOT_TOLD,
        preset=_DEFAULTS,
        max_areas_px=_MAX_AREAS_PX,
        fixed_schedule=True,
    )


def _describe_retouch(info: ServiceInfo) -> EngineInfo:
    """Return what is known of a retouch: of its profiles only the default's values.

    Raises:
        ModelError: a limit or a default is none that an edit can have.
    """
    defaults = info.defaults
    _require_usable(defaults, info.max_areas_px)
    preset = GenerationDefaults(
        steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        area_px=defaults.area_px,
        guided=defaults.guidance_scale > 1,
    )
    name = info.profiles[0] if info.profiles else _FULL
    profile = ProfileInfo(name, preset.steps, preset.guidance_scale, is_fixed=name != _FULL)
    return EngineInfo(
        model=one_line(info.model, max_characters=_MAX_NAME),
        revision=one_line(info.revision, max_characters=_MAX_NAME),
        dtype=one_line(info.dtype, max_characters=_MAX_NAME),
        memory_plan=MEMORY_PLAN,
        attention=one_line(info.attention, max_characters=_MAX_NAME),
        quantization=_NOT_TOLD,
        preset=preset,
        notes=_read_texts(info.notes),
        examples=_read_texts(info.examples),
        max_areas_px=tuple(info.max_areas_px),
        adapters=tuple(
            AdapterInfo(one.name, sha256="", layers=0, rank=0, scale=one.scale, always=one.always)
            for one in info.loras
        ),
        profiles=(profile,),
    )


def _require_usable(defaults: InfoDefaults, max_areas_px: Sequence[int]) -> None:
    areas_px = [defaults.area_px, *max_areas_px]
    if not (
        max_areas_px
        and all(0 < area_px <= max(_MAX_AREAS_PX) for area_px in areas_px)
        and 1 <= defaults.num_inference_steps <= _MAX_STEPS
        and 1 <= defaults.guidance_scale <= _MAX_GUIDANCE
    ):
        raise ModelError("ENGINE_URL: the defaults or limits in its /info cannot be used")


def _read_texts(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(one_line(text, max_characters=_MAX_TEXT) for text in texts[:_MAX_TEXTS])
