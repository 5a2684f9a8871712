"""Resolve a request into engine parameters: pure functions, no I/O."""

import hashlib

from retouch.editing.ports import EditParams, GenerationDefaults
from retouch.editing.source_set import SourceSet
from retouch.schema import MAX_STEPS, EditRequest

_DEFAULT_SIDE_MULTIPLE_PX = 32
_NO_GUIDANCE = 1.0


def derive_seed(job_id: str) -> int:
    """Derive a seed from the job id, so that a retried job makes the same bytes.

    >>> derive_seed("a") == derive_seed("a") != derive_seed("b")
    True
    """
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4])


def fit_size(width_px: int, height_px: int, *, area_px: int) -> tuple[int, int]:
    """Return width and height of about `area_px` in the source's aspect ratio, in multiples of 32.

    The rounding of `calculate_dimensions` in huggingface/diffusers, pipelines/qwenimage.

    >>> fit_size(1600, 1200, area_px=1024 * 1024)
    (1184, 896)
    """
    ratio = width_px / height_px
    width = (area_px * ratio) ** 0.5
    sides = (round(side / _DEFAULT_SIDE_MULTIPLE_PX) for side in (width, width / ratio))
    fitted = [max(side, 1) * _DEFAULT_SIDE_MULTIPLE_PX for side in sides]
    return fitted[0], fitted[1]


def choose_size(request: EditRequest, sources: SourceSet, *, area_px: int) -> tuple[int, int]:
    """Return the width and height to edit at: as asked for, or of about `area_px`.

    Without a wish it has the shape of what is edited: of the leading image, or of the mask's box.
    """
    if request.width is not None and request.height is not None:
        return request.width, request.height
    if sources.masking is not None and sources.masking.crops:
        left, top, right, bottom = sources.masking.box
        return fit_size(right - left, bottom - top, area_px=area_px)
    source = sources.lead(request)
    return fit_size(source.width_px, source.height_px, area_px=area_px)


def resolve_params(
    request: EditRequest,
    sources: SourceSet,
    preset: GenerationDefaults,
    *,
    job_id: str,
) -> tuple[EditParams, list[str]]:
    """Fill in the checkpoint's defaults; the notes name every deviation from the request.

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
    width, height = choose_size(request, sources, area_px=preset.area_px)
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
