"""Resolve a request into engine parameters: pure functions, no I/O."""

import hashlib
import math

from retouch.editing.ports import EditParams, GenerationDefaults
from retouch.editing.source_set import SourceSet
from retouch.schema import MAX_STEPS, SIDE_MULTIPLE_PX, EditRequest

_DEFAULT_SIDE_MULTIPLE_PX = 32
_AREA_TOLERANCE = 0.05
_NO_GUIDANCE = 1.0


def derive_seed(job_id: str) -> int:
    """Derive a seed from the job id, so that a retried job makes the same bytes.

    >>> derive_seed("a") == derive_seed("a") != derive_seed("b")
    True
    """
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4])


def fit_size(
    width_px: int, height_px: int, *, area_px: int, max_px: float = math.inf
) -> tuple[int, int]:
    """Return the size to edit a source at: of about `area_px`, with its aspect ratio.

    Where there is no size with exactly that ratio, it is nearly that ratio.

    >>> fit_size(1500, 1000, area_px=1024 * 1024), fit_size(1600, 1200, area_px=1024 * 1024)
    ((1248, 832), (1184, 896))
    """
    exact = _keep_aspect(width_px, height_px, area_px=area_px, max_px=max_px)
    return exact or round_size(width_px, height_px, area_px=area_px)


def _keep_aspect(
    width_px: int, height_px: int, *, area_px: int, max_px: float
) -> tuple[int, int] | None:
    """Return the largest size in multiples of 16 with exactly this aspect ratio, or None.

    Its area is 0.95 to 1.05 of `area_px` and at most `max_px`.
    """
    divisor = math.gcd(width_px, height_px)
    # One of the two is odd, so both sides are multiples of 16 only if their common factor is.
    unit = [SIDE_MULTIPLE_PX * side // divisor for side in (width_px, height_px)]
    most_px = min((1 + _AREA_TOLERANCE) * area_px, max_px)
    times = math.isqrt(int(most_px) // math.prod(unit))
    width, height = (side * times for side in unit)
    return (width, height) if width * height >= (1 - _AREA_TOLERANCE) * area_px else None


def round_size(width_px: int, height_px: int, *, area_px: int) -> tuple[int, int]:
    """Return width and height of about `area_px` in about this aspect ratio, in multiples of 32.

    The rounding of `calculate_dimensions` in huggingface/diffusers, pipelines/qwenimage.

    >>> round_size(1600, 1200, area_px=1024 * 1024)
    (1184, 896)
    """
    ratio = width_px / height_px
    width = (area_px * ratio) ** 0.5
    sides = (round(side / _DEFAULT_SIDE_MULTIPLE_PX) for side in (width, width / ratio))
    fitted = [max(side, 1) * _DEFAULT_SIDE_MULTIPLE_PX for side in sides]
    return fitted[0], fitted[1]


def choose_size(
    request: EditRequest, sources: SourceSet, *, area_px: int, max_px: float = math.inf
) -> tuple[int, int]:
    """Return the width and height to edit at: as asked for, or as `fit_size` says.

    Without a wish it has the shape of what is edited: of the leading image, or of the mask's box.
    """
    if request.width is not None and request.height is not None:
        return request.width, request.height
    if sources.masking is not None and sources.masking.crops:
        left, top, right, bottom = sources.masking.box
        return fit_size(right - left, bottom - top, area_px=area_px, max_px=max_px)
    source = sources.lead(request)
    return fit_size(source.width_px, source.height_px, area_px=area_px, max_px=max_px)


def resolve_params(
    request: EditRequest,
    sources: SourceSet,
    preset: GenerationDefaults,
    *,
    job_id: str,
    max_px: float = math.inf,
) -> tuple[EditParams, list[str]]:
    """Fill in the checkpoint's defaults; the notes name every deviation from the request.

    A size that the request leaves open has at most `max_px` pixels, where some size fits.
    Of several sources, a note begins with the number of its picture.
    """
    notes = _number_source_notes(sources)
    steps = request.num_inference_steps or preset.steps
    if steps > MAX_STEPS:
        notes.append(f"num_inference_steps {steps} is cut to {MAX_STEPS}")
        steps = MAX_STEPS
    guidance = request.guidance_scale or preset.guidance_scale
    if not preset.guided and guidance != _NO_GUIDANCE:
        notes.append("this checkpoint has no guidance: guidance_scale is 1.0")
        guidance = _NO_GUIDANCE
    negative_prompt = (request.negative_prompt or "").strip()
    if negative_prompt and guidance == _NO_GUIDANCE:
        notes.append("there is no guidance: negative_prompt is ignored")
    notes += _note_unused_fields(request, sources)
    width, height = choose_size(request, sources, area_px=preset.area_px, max_px=max_px)
    seed = request.seed if request.seed not in (None, -1) else derive_seed(job_id)
    params = EditParams(
        prompt=request.prompt.strip(),
        negative_prompt=negative_prompt or " ",
        seed=seed,
        steps=steps,
        guidance_scale=guidance,
        scheduler=request.scheduler,
        width_px=width,
        height_px=height,
        strength=request.strength,
    )
    return params, notes


def _number_source_notes(sources: SourceSet) -> list[str]:
    return [
        f"picture {number}: {note}" if len(sources.images) > 1 else note
        for number, source in enumerate(sources.images, 1)
        for note in source.notes
    ]


def _note_unused_fields(request: EditRequest, sources: SourceSet) -> list[str]:
    """Return a note for each field that is set, but has no effect on this request."""
    notes = []
    if request.output_format == "png" and "output_quality" in request.model_fields_set:
        notes.append("png is lossless: output_quality is ignored")
    if sources.mask is None and "mask_feather" in request.model_fields_set:
        notes.append("there is no mask: mask_feather is ignored")
    return notes
