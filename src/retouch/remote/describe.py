"""What the server has loaded: its model's name, and all that another retouch says about itself."""

from http import HTTPStatus

from pydantic import BaseModel, Field, ValidationError

from retouch.editing.ports import AdapterInfo, EngineInfo, GenerationDefaults, ProfileInfo
from retouch.errors import EngineDenied, EngineUnavailable
from retouch.remote.answer import to_error
from retouch.remote.server import Answer, Server
from retouch.schema import ServiceInfo

_MAX_BYTES = 1 << 20
_MAX_NAME = 200
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
    """Return what is known of a retouch: of its profiles only the default's values."""
    defaults = info.defaults
    preset = GenerationDefaults(
        steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        area_px=defaults.area_px,
        guided=defaults.guidance_scale > 1,
    )
    name = info.profiles[0] if info.profiles else _FULL
    profile = ProfileInfo(name, preset.steps, preset.guidance_scale, is_fixed=name != _FULL)
    return EngineInfo(
        model=info.model,
        revision=info.revision,
        dtype=info.dtype,
        memory_plan=MEMORY_PLAN,
        attention=info.attention,
        quantization=_NOT_TOLD,
        preset=preset,
        notes=tuple(info.notes),
        examples=tuple(info.examples),
        max_areas_px=tuple(info.max_areas_px),
        adapters=tuple(
            AdapterInfo(one.name, sha256="", layers=0, rank=0, scale=one.scale, always=one.always)
            for one in info.loras
        ),
        profiles=(profile,),
    )
