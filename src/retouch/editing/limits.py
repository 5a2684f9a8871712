"""What can be refused from the request and what is loaded alone, before anything is fetched."""

from retouch.editing.adapters import require_known
from retouch.editing.ports import Engine, EngineInfo
from retouch.editing.profiles import DEFAULT_SCHEDULER, choose_profile, fix_request
from retouch.errors import InvalidRequest
from retouch.schema import MAX_PROMPT_TOKENS, EditRequest


def require_possible(request: EditRequest, engine: Engine) -> None:
    """Require that what is loaded can make this edit.

    Raises:
        InvalidRequest: a text has too many tokens, there are too many images or pixels, a profile
            or an adapter is not loaded, or the engine has no other scheduler or strength.
    """
    _require_tokens(request, engine)
    _require_room(request, engine.info)
    profile = choose_profile(request.profile, engine.info)
    require_known(request.loras, engine.info, profile.adapter)
    if engine.info.fixed_schedule:
        _require_defaults(fix_request(request, profile)[0])


def _require_tokens(request: EditRequest, engine: Engine) -> None:
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
    fields = {
        name: f"must be at most {MAX_PROMPT_TOKENS} tokens"
        for name, text in texts.items()
        if engine.count_tokens(text) > MAX_PROMPT_TOKENS
    }
    if fields:
        raise InvalidRequest.for_fields(fields)


def _require_room(request: EditRequest, info: EngineInfo) -> None:
    images, most = len(request.sources), len(info.max_areas_px)
    if images > most:
        fault = f"{info.model} takes {most} image{'s' if most > 1 else ''}, not {images}"
        raise InvalidRequest.for_fields({"image_urls": fault})
    area_px, max_px = (request.width or 0) * (request.height or 0), info.max_areas_px[images - 1]
    if area_px > max_px:
        fault = f"width x height is {area_px} pixels; what is loaded takes at most {max_px}"
        fault += f" from {images} images" if images > 1 else ""
        raise InvalidRequest.for_fields({"width": fault, "height": fault})


def _require_defaults(request: EditRequest) -> None:
    faults = {}
    if request.strength < 1:
        faults["strength"] = "must be 1: the engine has no other"
    if request.scheduler != DEFAULT_SCHEDULER:
        faults["scheduler"] = f"must be {DEFAULT_SCHEDULER}: the engine has no other"
    if faults:
        raise InvalidRequest.for_fields(faults)
