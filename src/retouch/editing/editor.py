"""The use case: one edit as named steps, within its deadline.

load sources -> resolve parameters -> prepare -> acquire the model -> edit -> encode -> store -> link
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from retouch import tracing
from retouch.editing.adapters import resolve_adapters
from retouch.editing.admission import Admission
from retouch.editing.params import resolve_params
from retouch.editing.ports import EditParams, EngineInfo
from retouch.editing.previews import Previews
from retouch.editing.profiles import choose_profile, fix_request
from retouch.editing.result import (
    FOUND_NOTE,
    NO_PHASES,
    StoredResult,
    build_meta,
    describe_source,
    read_meta,
)
from retouch.editing.reuse import Flight, Made, ReuseIndex, fingerprint
from retouch.editing.source_set import SourceSet, combine_ids, find_ids
from retouch.editing.steps import Job, Steps, ignore, include_file
from retouch.errors import InvalidRequest
from retouch.images import encode
from retouch.schema import (
    MAX_PROMPT_TOKENS,
    EditRequest,
    EditResult,
    Meta,
    Progress,
    Result,
    Timings,
)
from retouch.storage.keys import result_key

Edited = tuple[StoredResult, Meta, dict[str, float]]
"""A stored result, its metadata, and milliseconds by phase."""


class Editor:
    """Runs edits. One uses the model; others download, prepare, encode or store at the same time."""

    def __init__(self, steps: Steps, admission: Admission) -> None:
        self.steps = steps
        self._admission = admission
        self._reuse = ReuseIndex(steps)
        self._settings = steps.settings
        self._clock = steps.clock

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self.steps.engine.info

    @property
    def waiting(self) -> int:
        """How many edits wait for the model."""
        return self._admission.waiting

    @property
    def running(self) -> int:
        """How many edits are on the model: 0 or 1."""
        return self._admission.running

    @property
    def retry_after_s(self) -> int:
        """Seconds until there is likely to be room for another edit."""
        return self._admission.retry_after_s

    async def close(self) -> None:
        """Take no more edits, let those in progress end, and end the threads."""
        await self._admission.close()
        await self._reuse.close()
        self.steps.close()

    async def run(
        self,
        request: EditRequest,
        *,
        job_id: str,
        request_id: str,
        progress: Callable[[Progress], None] = ignore,
        previews: Previews | None = None,
    ) -> EditResult:
        """Edit the request's images and return the link to the result.

        If the awaiting task is cancelled, the edit ends within a denoising step, and only then does
        the cancellation go on: the model is free when it arrives.

        Raises:
            EditError: any class of `errors`.
        """
        began_s = self._clock()
        deadline_s = began_s + self._settings.job_timeout_s
        job = Job(request, job_id, request_id, deadline_s, progress, previews)
        with tracing.span("edit", job_id=job_id), self._admission.admit():
            self._require_possible(request)
            progress(Progress(stage="source"))
            loaded = await self.steps.load_sources(job)
            seen = [describe_source(source) for source in loaded.images]
            load_ms = _loading_phases(loaded)
            flight = self._join_flight(request, loaded, job_id=job_id)
            sources = None
            if not (flight and flight.turn.locked()):
                sources = loaded
                request = request.without_sources()  # they are decoded
                job = replace(job, request=request)
            del loaded  # whoever waits for an equal request holds no picture
            stored, meta, phases_ms = await self._reuse_or_edit(job, sources, flight)
        total_ms = 1000 * (self._clock() - began_s)
        phases_ms = NO_PHASES | load_ms | phases_ms | {"total": total_ms}
        timings = Timings(**{phase: round(ms, 3) for phase, ms in phases_ms.items()})
        meta = meta.model_copy(update={"timings_ms": timings, "source": seen[0], "sources": seen})
        return self._answer(stored, meta)

    def _join_flight(
        self, request: EditRequest, sources: SourceSet, *, job_id: str
    ) -> Flight | None:
        """Return the flight of all equal requests, or None where the result is not to be reused."""
        if not self._settings.reuse or request.seed in (None, -1) or sources.is_stale:
            return None
        params, _ = self._resolve(request, sources, job_id=job_id)
        return self._reuse.join(fingerprint(request, params, sources.content, self.info))

    async def _reuse_or_edit(
        self, job: Job, sources: SourceSet | None, flight: Flight | None
    ) -> Edited:
        """Return the stored result of an equal request, or edit. `sources` is None if let go."""
        if flight is None:
            assert sources is not None  # noqa: S101 - let go only for a flight
            return await self._edit_and_store(job, sources)
        job.progress(Progress(stage="queue"))
        queued_s = self._clock()
        async with self._reuse.turn(flight, timeout_s=self.steps.left_s(job)):
            began_s = self._clock()
            if made := await self._reuse.find(flight, job):
                stored = self.steps.link(made.key, made.content_type)
                stored = include_file(stored, made.body, job.request.response_format)
                meta = made.meta.model_copy(
                    update={"job_id": job.id, "request_id": job.request_id, "reused": True}
                )
                store_ms = 1000 * (self._clock() - began_s)
                return stored, meta, {"queue": 1000 * (began_s - queued_s), "store": store_ms}
            sources = sources or await self.steps.load_sources(job)
            edited = await self._edit_and_store(job, sources)
            if current := self._join_flight(job.request, sources, job_id=job.id):
                # Another one if float16 became bfloat16, or a source changed while this one waited.
                self._reuse.keep(current, Made(edited[0].key, edited[0].content_type, edited[1]))
            return edited

    async def _edit_and_store(self, job: Job, sources: SourceSet) -> Edited:
        """Edit loaded sources, within one of the places, and store the result.

        Raises:
            Overloaded: no place is free.
        """
        with self._admission.take_place():
            request, job = job.request, replace(job, masking=sources.masking)
            params, notes = self._resolve(request, sources, job_id=job.id)
            prepared, prepare_ms = await self.steps.prepare(job, sources, params)

            def tell(place: int) -> None:
                job.progress(Progress(stage="queue", place=place))

            tell(self._admission.ahead)
            queued_s = self._clock()
            async with self._admission.acquire_model(
                timeout_s=self.steps.left_s(job), on_place=tell
            ):
                queue_ms = 1000 * (self._clock() - queued_s)
                output = await self.steps.edit(job, prepared)
            job.progress(Progress(stage="store"))
            encoded = await self.steps.encode(job, output)
            notes += [*output.notes, *self.info.notes]
            meta = build_meta(
                request, params, sources, self.info, notes, job_id=job.id, request_id=job.request_id
            )
            key = self._result_key(sources.ids, job.id, request)
            stored = await self.steps.store(job, key, encoded, meta)
        phases_ms = {
            "queue": queue_ms,
            "prepare": prepare_ms,
            "condition": output.condition_ms,
            "denoise": output.denoise_ms,
            "vae_decode": output.vae_decode_ms,
            "encode": encoded.encode_ms,
            "store": stored.store_ms,
        }
        return stored, meta, phases_ms

    async def find(
        self, request: EditRequest, *, job_id: str, request_id: str
    ) -> EditResult | None:
        """Return the result that an earlier attempt at this job stored, by a new link.

        Sends one GET to the store at most; fetches and edits nothing.

        Raises:
            BadInput: an image's URL cannot be used.
            StorageError: the store did not answer.
        """
        began_s = self._clock()
        source_ids = await find_ids(self.steps.sources, request)
        key = self._result_key(source_ids, job_id, request)
        found = await self.steps.get_stored(key)
        if found is None:
            return None
        get_ms = 1000 * (self._clock() - began_s)
        meta = read_meta(found, job_id=job_id, request_id=request_id, get_ms=get_ms)
        if meta is None:
            return None
        meta = meta.model_copy(update={"notes": [*meta.notes, FOUND_NOTE]})
        stored = self.steps.link(key, encode.CONTENT_TYPES[request.file_format])
        return self._answer(include_file(stored, found.body, request.response_format), meta)

    def _resolve(
        self, request: EditRequest, sources: SourceSet, *, job_id: str
    ) -> tuple[EditParams, list[str]]:
        profile = choose_profile(request.profile, self.info)
        loras = resolve_adapters(request.loras, self.info.adapters, profile.adapter)
        request, ignored = fix_request(request, profile)
        preset = replace(
            self.info.preset, steps=profile.steps, guidance_scale=profile.guidance_scale
        )
        params, notes = resolve_params(request, sources, preset, job_id=job_id)
        params = replace(params, loras=loras, profile=profile.name, shift=profile.shift)
        return params, [*ignored, *notes]

    def _require_possible(self, request: EditRequest) -> None:
        self._require_tokens(request)
        self._require_room(request)
        self._require_loaded(request)

    def _require_loaded(self, request: EditRequest) -> None:
        profile = choose_profile(request.profile, self.info)
        resolve_adapters(request.loras, self.info.adapters, profile.adapter)

    def _require_tokens(self, request: EditRequest) -> None:
        texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
        fields = {
            name: f"must be at most {MAX_PROMPT_TOKENS} tokens"
            for name, text in texts.items()
            if self.steps.engine.count_tokens(text) > MAX_PROMPT_TOKENS
        }
        if fields:
            raise InvalidRequest.for_fields(fields)

    def _require_room(self, request: EditRequest) -> None:
        images, most = len(request.sources), len(self.info.max_areas_px)
        if images > most:
            fault = f"{self.info.model} takes {most} image{'s' if most > 1 else ''}, not {images}"
            raise InvalidRequest.for_fields({"image_urls": fault})
        area_px, max_px = (
            (request.width or 0) * (request.height or 0),
            self.info.max_areas_px[images - 1],
        )
        if area_px > max_px:
            fault = f"width x height is {area_px} pixels; what is loaded takes at most {max_px}"
            fault += f" from {images} images" if images > 1 else ""
            raise InvalidRequest.for_fields({"width": fault, "height": fault})

    def _result_key(self, source_ids: Sequence[str], job_id: str, request: EditRequest) -> str:
        extension = encode.EXTENSIONS[request.file_format]
        return result_key(self._settings.prefix, combine_ids(source_ids), job_id, extension)

    def _answer(self, stored: StoredResult, meta: Meta) -> EditResult:
        result = Result(
            presigned_url=stored.link,
            bucket=self.steps.storage.name,
            object_key=stored.key,
            content_type=stored.content_type,
            expires_in=self._settings.link_expires_in_s,
            expires_at=stored.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            b64_json=stored.b64_json,
            meta=meta,
        )
        return EditResult(result=result)


def _loading_phases(sources: SourceSet) -> dict[str, float]:
    """Return the milliseconds of the slowest source by phase; sources are loaded at the same time."""
    return {
        "fetch": max(source.fetch_ms for source in sources.images),
        "source_decode": max(source.decode_ms for source in sources.images),
    }
