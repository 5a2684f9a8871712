"""Resolve the profile of a request among those that are offered: pure functions, no I/O."""

from collections.abc import Sequence

from retouch.editing.ports import EngineInfo, ProfileInfo
from retouch.errors import InvalidRequest
from retouch.schema import EditRequest

_FIXED = ("num_inference_steps", "guidance_scale", "scheduler")
DEFAULT_SCHEDULER = "Euler"


def choose_profile(name: str | None, info: EngineInfo) -> ProfileInfo:
    """Return the profile of that name, or the default one.

    Raises:
        InvalidRequest: no such profile is offered.
    """
    preset = info.preset
    offered: Sequence[ProfileInfo] = info.profiles or (
        ProfileInfo("full", preset.steps, preset.guidance_scale, is_fixed=False),
    )
    for profile in offered:
        if name in (None, profile.name):
            return profile
    names = ", ".join(profile.name for profile in offered)
    raise InvalidRequest.for_fields({"profile": f"{name} is not offered; PROFILES offers: {names}"})


def fix_request(request: EditRequest, profile: ProfileInfo) -> tuple[EditRequest, list[str]]:
    """Return the request with what the profile fixes, and a note for each value that this ignores."""
    if not profile.is_fixed:
        return request, []
    values = (profile.steps, profile.guidance_scale, DEFAULT_SCHEDULER)
    notes = []
    for field, value in zip(_FIXED, values, strict=True):
        given = getattr(request, field)
        if given not in (None, value) and field in request.model_fields_set:
            notes.append(f"profile {profile.name} has {field} {value}: {given} is ignored")
    return request.model_copy(update=dict(zip(_FIXED, values, strict=True))), notes
