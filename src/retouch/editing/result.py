"""What is told of an edit, and how it is kept beside the result so that the answer can be given again."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime

from retouch.editing.ports import EditParams, EngineInfo, Source
from retouch.schema import Meta, SourceMeta, Timings
from retouch.storage.port import StoredObject

# Backblaze B2 allows 2,048 bytes for the name and all metadata of an encrypted object.
_MAX_META_CHARACTERS = 1400
_OF_THE_ATTEMPT = {"job_id", "request_id", "timings_ms"}
_FOUND_NOTE = "an earlier attempt at this job had stored this result"


@dataclass(frozen=True, slots=True)
class StoredResult:
    """Where a result went."""

    link: str
    key: str
    content_type: str
    expires_at: datetime
    encode_ms: float = 0.0
    store_ms: float = 0.0


def build_meta(
    work: EditParams,
    source: Source,
    info: EngineInfo,
    notes: list[str],
    *,
    job_id: str,
    request_id: str,
) -> Meta:
    """Say what was done; its timings are still to come."""
    return Meta(
        request_id=request_id,
        job_id=job_id,
        seed=work.seed,
        num_inference_steps=work.steps,
        guidance_scale=work.guidance_scale,
        scheduler=work.scheduler,
        width=work.width_px,
        height=work.height_px,
        model=info.model,
        revision=info.revision,
        dtype=info.dtype,
        memory_plan=info.memory_plan,
        source=SourceMeta(
            width=source.width_px,
            height=source.height_px,
            format=source.format,
            bytes=source.size_bytes,
            cached=source.cached,
            stale=source.stale,
        ),
        timings_ms=Timings(**dict.fromkeys(Timings.model_fields, 0.0)),
        notes=notes,
    )


def to_object_metadata(body: bytes, meta: Meta) -> dict[str, str]:
    """Return what is kept beside a result: its hash, and `meta` as far as there is room for it."""
    metadata = {"sha256": hashlib.sha256(body).hexdigest()}
    kept = meta.model_dump(mode="json", exclude=_OF_THE_ATTEMPT)
    for fields in (kept, kept | {"notes": []}):
        text = json.dumps(fields, separators=(",", ":"))
        if len(text) <= _MAX_META_CHARACTERS:
            return metadata | {"meta": text}
    return metadata


def read_meta(stored: StoredObject, *, job_id: str, request_id: str, get_ms: float) -> Meta | None:
    """Return the meta of a stored result, or None where it is not whole.

    Its timings are of this attempt, which did nothing but get the result.
    """
    try:
        if stored.metadata["sha256"] != hashlib.sha256(stored.body).hexdigest():
            return None
        kept = json.loads(stored.metadata["meta"])
        kept["notes"].append(_FOUND_NOTE)
        get_ms = round(get_ms, 3)
        timings = dict.fromkeys(Timings.model_fields, 0.0) | {"store": get_ms, "total": get_ms}
        attempt = {"job_id": job_id, "request_id": request_id, "timings_ms": timings}
        return Meta.model_validate(kept | attempt)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return None
