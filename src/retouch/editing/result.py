"""The response metadata, and its copy in the result object.

With the copy a retry is answered without editing again.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from retouch.editing.ports import EditParams, EngineInfo, Source
from retouch.editing.source_set import SourceSet
from retouch.schema import EditRequest, Geometry, LoraMeta, Meta, Result, SourceMeta, Timings
from retouch.storage.port import StoredObject

# Backblaze B2 allows 2,048 bytes for the name and all metadata of an encrypted object.
_MAX_META_CHARACTERS = 1400
_NOT_KEPT = {"job_id", "request_id", "timings_ms", "reused", "source"}
"""What belongs to one attempt, and `source`, which is the first of `sources`."""
NO_PHASES = dict.fromkeys(Timings.model_fields, 0.0)
FOUND_NOTE = "an earlier attempt at this job had stored this result"


@dataclass(frozen=True, slots=True)
class EncodedResult:
    """An image file and the milliseconds it took to make it from the model's output."""

    body: bytes
    content_type: str
    encode_ms: float


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A stored result: its signed link, key and expiry, and the file as base64 if asked for."""

    link: str
    key: str
    content_type: str
    expires_at: datetime
    store_ms: float = 0.0
    b64_json: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A stored result, its metadata, and the milliseconds of its phases."""

    stored: StoredResult
    meta: Meta
    phases_ms: dict[str, float]

    def with_timings(self, more_ms: dict[str, float], **changes: object) -> "Finished":
        """Return a copy whose metadata has the phases as its timings, `more_ms` among them."""
        phases_ms = NO_PHASES | self.phases_ms | more_ms
        timings = Timings(**{phase: round(ms, 3) for phase, ms in phases_ms.items()})
        return replace(self, meta=self.meta.model_copy(update={"timings_ms": timings, **changes}))


def build_result(one: Finished, *, bucket: str, expires_in_s: int) -> Result:
    """Build what the answer says about a result in `bucket`."""
    stored = one.stored
    return Result(
        presigned_url=stored.link,
        bucket=bucket,
        object_key=stored.key,
        content_type=stored.content_type,
        expires_in=expires_in_s,
        expires_at=stored.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        b64_json=stored.b64_json,
        meta=one.meta,
    )


def describe_geometry(request: EditRequest, params: EditParams, sources: SourceSet) -> Geometry:
    """Return which part of which size was edited at what size."""
    size_px = sources.lead(request).image.size
    masking = sources.masking
    return Geometry(
        source=size_px,
        box=masking.box if masking else (0, 0, *size_px),
        working=(params.width_px, params.height_px),
    )


def build_meta(
    request: EditRequest,
    params: EditParams,
    sources: SourceSet,
    info: EngineInfo,
    notes: list[str],
    *,
    job_id: str,
    request_id: str,
) -> Meta:
    """Build the response metadata; the timings are filled in at the end."""
    described = [describe_source(source) for source in sources.images]
    geometry = describe_geometry(request, params, sources)
    width_px, height_px = _result_size(geometry, sources)
    return Meta(
        request_id=request_id,
        job_id=job_id,
        seed=params.seed,
        num_inference_steps=params.steps,
        guidance_scale=params.guidance_scale,
        scheduler=params.scheduler,
        width=width_px,
        height=height_px,
        strength=params.strength,
        geometry=geometry,
        model=info.model,
        revision=info.revision,
        dtype=info.dtype,
        memory_plan=info.memory_plan,
        attention=info.attention,
        quantization=info.quantization,
        compiled=info.compiled,
        profile=params.profile,
        loras=[LoraMeta.model_validate(asdict(lora)) for lora in params.loras],
        source=described[0],
        sources=described,
        timings_ms=Timings(**NO_PHASES),
        notes=notes,
        reused=False,
    )


def _result_size(geometry: Geometry, sources: SourceSet) -> tuple[int, int]:
    """Return the result's width and height: the source's where only a box of it was edited."""
    is_cropped = sources.masking is not None and sources.masking.crops
    return geometry.source if is_cropped else geometry.working


def describe_source(source: Source) -> SourceMeta:
    """Return what the answer says about a source."""
    return SourceMeta(
        width=source.width_px,
        height=source.height_px,
        format=source.format,
        bytes=source.size_bytes,
        cached=source.cached,
        stale=source.stale,
    )


def to_object_metadata(body: bytes, meta: Meta) -> dict[str, str]:
    """Return the metadata of a result object: its hash, and `meta` where it fits, if need be without notes."""
    metadata = {"sha256": hashlib.sha256(body).hexdigest()}
    kept = meta.model_dump(mode="json", exclude=_NOT_KEPT)
    for fields in (kept, kept | {"notes": []}):
        text = json.dumps(fields, separators=(",", ":"))
        if len(text) <= _MAX_META_CHARACTERS:
            return metadata | {"meta": text}
    return metadata


def read_meta(stored: StoredObject, *, job_id: str, request_id: str, get_ms: float) -> Meta | None:
    """Return the response metadata of a stored result, or None if the object is damaged.

    Its timings are those of this attempt, which only read the object.
    """
    try:
        if stored.metadata["sha256"] != hashlib.sha256(stored.body).hexdigest():
            return None
        kept = json.loads(stored.metadata["meta"])
        get_ms = round(get_ms, 3)
        timings = NO_PHASES | {"store": get_ms, "total": get_ms}
        attempt = {"job_id": job_id, "request_id": request_id, "timings_ms": timings}
        sources = kept.get("sources") or [kept["source"]]  # an older result has only the latter
        attempt |= {"sources": sources, "source": sources[0]}
        return Meta.model_validate(kept | attempt)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return None
