"""The use case: one edit as named steps, within its deadline.

load sources -> resolve parameters -> prepare -> acquire the model -> edit -> encode -> store -> link
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from retouch import tracing
from retouch.editing.adapters import resolve_adapters
from retouch.editing.admission import Admission
from retouch.editing.batch import edit_each, finishing, list_seeds
from retouch.editing.job import Job, ignore
from retouch.editing.limits import require_possible
from retouch.editing.params import resolve_params
from retouch.editing.ports import EditParams, EngineInfo, EngineOutput
from retouch.editing.previews import Previews
from retouch.editing.profiles import choose_profile, fix_request
from retouch.editing.result import (
    FOUND_NOTE,
    Finished,
    build_meta,
    build_result,
    describe_source,
    read_meta,
)
from retouch.editing.reuse import Flight, Made, ReuseIndex, fingerprint
from retouch.editing.source_set import SourceSet, combine_ids, find_ids
from retouch.editing.steps import Steps, include_file
from retouch.images import encode
from retouch.schema import EditRequest, EditResult, Meta, Progress, Result
from retouch.storage.keys import result_key


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
        found: Sequence[Finished | None] = (),
    ) -> EditResult:
        """Edit the request's images and return the links to the results.

        Those that `find` has found are not made again. If the awaiting task is cancelled, the edit
        ends within a denoising step, and only then does the cancellation go on: the model is free
        when it arrives.

        Raises:
            EditError: any class of `errors`. Its details list the `results` that were stored.
        """
        began_s = self._clock()
        deadline_s = began_s + self._settings.job_timeout_s
        job = Job(request, job_id, request_id, began_s, deadline_s, progress, previews, found=found)
        with tracing.span("edit", job_id=job_id), self._admission.admit():
            require_possible(request, self.steps.engine)
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
            del loaded  # a request that waits for an equal one holds no picture
            made = await self._reuse_or_edit(job, sources, flight)
        more_ms = load_ms | self._count_total(job)
        return self.answer(
            [one.with_timings(more_ms, source=seen[0], sources=seen) for one in made]
        )

    def _count_total(self, job: Job) -> dict[str, float]:
        return {"total": 1000 * (self._clock() - job.began_s)}

    def _join_flight(
        self, request: EditRequest, sources: SourceSet, *, job_id: str
    ) -> Flight | None:
        """Return the flight of all equal requests, or None where the result is not to be reused."""
        if not self._settings.reuse or request.seed in (None, -1) or sources.is_stale:
            return None
        params, notes = self._resolve(request, sources, job_id=job_id)
        return self._reuse.join(fingerprint(request, params, sources.content, self.info, *notes))

    async def _reuse_or_edit(
        self, job: Job, sources: SourceSet | None, flight: Flight | None
    ) -> list[Finished]:
        """Return the stored results of an equal request, or edit. `sources` is None if it was released."""
        if flight is None:
            assert sources is not None  # noqa: S101 - released only for a flight
            return await self._edit_and_store(job, sources)
        job.progress(Progress(stage="queue"))
        queued_s = self._clock()
        async with self._reuse.turn(flight, timeout_s=self.steps.left_s(job)):
            began_s = self._clock()
            if made := await self._reuse.find(flight, job):
                queue_ms = 1000 * (began_s - queued_s)
                return [self._reused(one, job, queue_ms, began_s) for one in made]
            sources = sources or await self.steps.load_sources(job)
            edited = await self._edit_and_store(job, sources)
            is_of_one_precision = all(one.meta.dtype == self.info.dtype for one in edited)
            if is_of_one_precision and (
                current := self._join_flight(job.request, sources, job_id=job.id)
            ):
                # Another one if float16 became bfloat16, or a source changed while this one waited.
                made = [Made(one.stored.key, one.stored.content_type, one.meta) for one in edited]
                self._reuse.keep(current, made)
            return edited

    def _reused(self, made: Made, job: Job, queue_ms: float, began_s: float) -> Finished:
        stored = self.steps.link(made.key, made.content_type)
        stored = include_file(stored, made.body, job.request.response_format)
        ids = {"job_id": job.id, "request_id": job.request_id}
        meta = made.meta.model_copy(update=ids | {"reused": True})
        store_ms = 1000 * (self._clock() - began_s)
        return Finished(stored, meta, {"queue": queue_ms, "store": store_ms})

    async def _edit_and_store(self, job: Job, sources: SourceSet) -> list[Finished]:
        """Edit loaded sources, within one of the places, and store the results.

        Raises:
            Overloaded: no place is free.
        """
        with self._admission.take_place():
            job = replace(job, masking=sources.masking)
            params, notes = self._resolve(job.request, sources, job_id=job.id)
            prepared, prepare_ms = await self.steps.prepare(job, sources, params)

            def tell(place: int) -> None:
                job.progress(Progress(stage="queue", place=place))

            tell(self._admission.ahead)
            queued_s = self._clock()
            async with finishing(job.found, lambda one: self._describe(one, job)) as results:
                async with self._admission.acquire_model(
                    timeout_s=self.steps.left_s(job), on_place=tell
                ):
                    queue_ms = 1000 * (self._clock() - queued_s)
                    before_ms = {"queue": queue_ms, "prepare": prepare_ms}
                    before_ms |= _loading_phases(sources)
                    seeds = dict(enumerate(list_seeds(params.seed, job.request.num_images)))
                    missing = {number: seeds[number] for number in seeds.keys() - results}
                    async for number, edit, output in edit_each(self.steps, job, prepared, missing):
                        meta = self._build_meta(job, edit, sources, [*notes, *output.notes])
                        key = self._result_key(sources.ids, job.id, job.request, number)
                        run = self._finish(job, output, key, meta, before_ms)
                        results[number] = asyncio.create_task(run)
                job.progress(Progress(stage="store"))
        return [results[number].result() for number in sorted(results)]

    def _build_meta(
        self, job: Job, params: EditParams, sources: SourceSet, notes: list[str]
    ) -> Meta:
        notes = [*notes, *self.info.notes]
        ids = {"job_id": job.id, "request_id": job.request_id}
        return build_meta(job.request, params, sources, self.info, notes, **ids)

    async def _finish(
        self,
        job: Job,
        output: EngineOutput,
        key: str,
        meta: Meta,
        before_ms: Mapping[str, float],
    ) -> Finished:
        """Encode and store one result."""
        encoded = await self.steps.encode(job, output)
        stored = await self.steps.store(job, key, encoded, meta)
        phases_ms = {
            **before_ms,
            "condition": output.condition_ms,
            "denoise": output.denoise_ms,
            "vae_decode": output.vae_decode_ms,
            "encode": encoded.encode_ms,
            "store": stored.store_ms,
        }
        return Finished(stored, meta, phases_ms)

    async def find(
        self, request: EditRequest, *, job_id: str, request_id: str
    ) -> list[Finished | None]:
        """Return the results that an earlier attempt at this job stored, by new links.

        There is None in place of one that is not there. Sends one GET a result to the store; fetches
        and edits nothing.

        Raises:
            BadInput: an image's URL cannot be used.
            StorageError: the store did not answer.
        """
        source_ids = await find_ids(self.steps.sources, request)
        keys = [
            self._result_key(source_ids, job_id, request, number)
            for number in range(request.num_images)
        ]
        return await asyncio.gather(
            *(self._find(key, request, job_id=job_id, request_id=request_id) for key in keys)
        )

    async def _find(
        self, key: str, request: EditRequest, *, job_id: str, request_id: str
    ) -> Finished | None:
        began_s = self._clock()
        found = await self.steps.get_stored(key)
        if found is None:
            return None
        get_ms = 1000 * (self._clock() - began_s)
        meta = read_meta(found, job_id=job_id, request_id=request_id, get_ms=get_ms)
        if meta is None:
            return None
        meta = meta.model_copy(update={"notes": [*meta.notes, FOUND_NOTE]})
        stored = self.steps.link(key, encode.CONTENT_TYPES[request.file_format])
        stored = include_file(stored, found.body, request.response_format)
        return Finished(stored, meta, {"store": get_ms})

    def _resolve(
        self, request: EditRequest, sources: SourceSet, *, job_id: str
    ) -> tuple[EditParams, list[str]]:
        profile = choose_profile(request.profile, self.info)
        loaded = [*self.info.adapters, *(held.info for held in sources.adapters)]
        loras = resolve_adapters(
            request.loras, loaded, profile.adapter, max_rank=self.info.max_adapter_rank
        )
        request, ignored = fix_request(request, profile)
        preset = replace(
            self.info.preset, steps=profile.steps, guidance_scale=profile.guidance_scale
        )
        max_px = self.info.max_areas_px[len(sources.images) - 1]
        params, notes = resolve_params(request, sources, preset, job_id=job_id, max_px=max_px)
        params = replace(params, loras=loras, profile=profile.name, shift=profile.shift)
        return params, [*ignored, *notes]

    def _result_key(
        self, source_ids: Sequence[str], job_id: str, request: EditRequest, number: int
    ) -> str:
        extension = encode.EXTENSIONS[request.file_format]
        source_id = combine_ids(source_ids)
        return result_key(self._settings.prefix, source_id, job_id, extension, number=number)

    def answer(self, results: Sequence[Finished]) -> EditResult:
        """Return the answer that has these results."""
        first, *others = [self._build_result(one) for one in results]
        return EditResult(result=first, results=[first, *others] if others else None)

    def _describe(self, one: Finished, job: Job) -> Result:
        """Return a result as an error lists it: by its link, without its file."""
        result = self._build_result(one.with_timings(self._count_total(job)))
        return result.model_copy(update={"b64_json": None})

    def _build_result(self, one: Finished) -> Result:
        expires_in_s = self._settings.link_expires_in_s
        return build_result(one, bucket=self.steps.storage.name, expires_in_s=expires_in_s)


def _loading_phases(sources: SourceSet) -> dict[str, float]:
    """Return the milliseconds of the slowest source by phase; sources are loaded at the same time."""
    return {
        "fetch": max(source.fetch_ms for source in sources.images),
        "source_decode": max(source.decode_ms for source in sources.images),
    }
