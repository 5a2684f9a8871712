"""The steps of an edit, each usable alone. `editor` puts them in order."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from retouch import tracing
from retouch.editing.adapter_ports import AdapterFetcher, HeldAdapter
from retouch.editing.adapters import load_adapters
from retouch.editing.job import Job, report_steps
from retouch.editing.masking import plan_masking
from retouch.editing.ports import EditParams, Engine, EngineOutput, PreparedEdit, Sources
from retouch.editing.previews import with_previews
from retouch.editing.result import EncodedResult, StoredResult, to_object_metadata
from retouch.editing.source_set import SourceSet, load_all
from retouch.editing.waiting import run_model, settle, within
from retouch.errors import Cancelled, DeadlineExceeded, ModelLost
from retouch.images import encode
from retouch.schema import Meta, Progress, ResponseFormat
from retouch.storage.port import Store, StoredObject

_MAX_RESULT_BYTES = 64 << 20
_FIND_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class EditorSettings:
    """Where results go, how long things may take, and how large a request's images are together.

    `grace_s` is how long an edit may run past its deadline before its model counts as hung.
    `reuse` answers equal requests with an explicit seed from the stored result.
    """

    prefix: str = ""
    link_expires_in_s: int = 86400
    store_timeout_s: float = 120.0
    job_timeout_s: float = 600.0
    grace_s: float = 15.0
    reuse: bool = True
    max_source_bytes: int = 2 * 26214400


@dataclass(kw_only=True)
class Steps:
    """The steps over a source loader, an engine and a store, in threads of their own.

    `on_model_lost` is called in the event loop when an edit has not ended `grace_s` after its
    deadline.
    """

    sources: Sources
    engine: Engine
    storage: Store
    settings: EditorSettings
    adapters: AdapterFetcher | None = None
    clock: Callable[[], float] = time.monotonic
    on_model_lost: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        """Make the threads; none starts before its first use."""
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._host_threads = ThreadPoolExecutor(8, thread_name_prefix="result")

    def close(self) -> None:
        """End the threads once they have nothing left to do; do not wait."""
        self._model_thread.shutdown(wait=False)
        self._host_threads.shutdown(wait=False)

    def left_s(self, job: Job) -> float:
        """Return the seconds left of the job's time.

        Raises:
            DeadlineExceeded: none are left.
        """
        left_s = job.deadline_s - self.clock()
        if left_s <= 0:
            raise DeadlineExceeded("the job's time ran out")
        return left_s

    async def load_sources(self, job: Job) -> SourceSet:
        """Return the decoded images and mask, and the adapters at URLs.

        Raises:
            DeadlineExceeded: they did not arrive in the job's time.
            EditError: as `load_adapters`, `load_all` and `plan_masking`.
        """
        left_s, request = self.left_s(job), job.request
        adapters: tuple[HeldAdapter, ...] = ()
        try:
            async with asyncio.timeout(left_s):
                if self.adapters:
                    adapters = await load_adapters(self.adapters, request.loras, timeout_s=left_s)
                images, mask = await load_all(
                    self.sources,
                    request,
                    timeout_s=left_s,
                    max_bytes=self.settings.max_source_bytes,
                )
        except TimeoutError as error:
            raise DeadlineExceeded("the job's time ran out while its image was loaded") from error
        if mask is None:
            return SourceSet(images, adapters=adapters)
        plan = partial(
            plan_masking,
            images[0],
            mask,
            feather_px=request.mask_feather,
            padding_px=request.mask_padding,
        )
        return SourceSet(images, mask, await tracing.run_in(self._host_threads, plan), adapters)

    async def prepare(
        self, job: Job, sources: SourceSet, params: EditParams
    ) -> tuple[PreparedEdit, float]:
        """Do the engine's host work on the sources; return it with its milliseconds.

        Runs beside the edit that has the model.

        Raises:
            DeadlineExceeded: the job's time is over.
            ModelError: as `Engine.prepare`.
        """
        self.left_s(job)
        began_s = self.clock()
        images = [source.image for source in sources.images]

        def prepare() -> PreparedEdit:
            if sources.masking is None:
                return self.engine.prepare(images, params)
            first, mask = sources.masking.crop()
            return self.engine.prepare([first, *images[1:]], params, mask=mask)

        prepared = await tracing.run_in(self._host_threads, prepare, step="prepare")
        return prepared, 1000 * (self.clock() - began_s)

    async def edit(
        self, job: Job, prepared: PreparedEdit, *, turn: int = 0, turns: int = 1
    ) -> EngineOutput:
        """Run the model, which the caller must have acquired: for the `turn`-th of `turns` results.

        Returns or raises only when the model has come back, so that the next edit finds it free; or
        `grace_s` after the deadline, when it is lost for good.

        Raises:
            DeadlineExceeded: the job's time ran out.
            ModelError: as `Engine.edit`.
        """
        stop = threading.Event()  # set once, by this coroutine; read by the model thread
        report = report_steps(job, turn=turn, turns=turns)

        def on_step(done: int, steps: int) -> None:
            if stop.is_set():
                raise Cancelled("the caller went away")
            if self.clock() >= job.deadline_s:
                raise DeadlineExceeded("the job's time ran out in the middle of the edit")
            report(done, steps)

        if turn == 0:
            job.progress(Progress(stage="condition", steps=turns * prepared.params.run_steps))
        previews: list[Future[None]] = []
        if job.previews:
            prepared, previews = with_previews(
                prepared,
                job.previews,
                encode=partial(self._encode, job),
                threads=self._host_threads,
            )
        patience_s = job.deadline_s - self.clock() + self.settings.grace_s
        run = partial(run_model, self.engine, prepared, on_step)
        running = tracing.run_in(self._model_thread, run, step="model")
        await self._settle_model(running, timeout_s=patience_s, stop=stop)
        await asyncio.gather(*map(asyncio.wrap_future, previews), return_exceptions=True)
        return running.result()

    async def _settle_model(
        self, running: asyncio.Future[EngineOutput], *, timeout_s: float, stop: threading.Event
    ) -> None:
        """Wait until the model has come back, or is lost; raise if it hangs or is cancelled.

        The engine itself may find that it is lost, as a part of it has ended.
        """
        cancelled = await settle(running, timeout_s=timeout_s, stop=stop)
        if not running.done():
            self.on_model_lost()
            raise cancelled or DeadlineExceeded(
                "the model did not stop when the job's time ran out"
            )
        if isinstance(running.exception(), ModelLost):  # retrieved, or asyncio logs it as lost
            self.on_model_lost()
        if cancelled:
            raise cancelled

    def _encode(self, job: Job, output: EngineOutput) -> bytes:
        request, image = job.request, self.engine.finish(output)
        if job.masking:
            image = job.masking.finish(image)
        return encode.encode(image, request.file_format, quality=request.output_quality)

    async def encode(self, job: Job, output: EngineOutput) -> EncodedResult:
        """Turn the model's output into a file of the requested format.

        Raises:
            DeadlineExceeded: the job's time is over.
        """
        self.left_s(job)
        began_s = self.clock()
        request = job.request
        body = await tracing.run_in(
            self._host_threads, lambda: self._encode(job, output), step="encode"
        )
        encode_ms = 1000 * (self.clock() - began_s)
        return EncodedResult(body, encode.CONTENT_TYPES[request.file_format], encode_ms)

    async def store(self, job: Job, key: str, encoded: EncodedResult, meta: Meta) -> StoredResult:
        """Store the file with its metadata under `key`, and sign a link to it.

        Raises:
            DeadlineExceeded: the job's time is over.
            StorageError: as `Store.put` and `Store.link`.
        """
        began_s = self.clock()
        timeout_s = min(self.left_s(job), self.settings.store_timeout_s)

        def put() -> StoredResult:
            self.storage.put(
                key,
                encoded.body,
                content_type=encoded.content_type,
                metadata=to_object_metadata(encoded.body, meta),
                timeout_s=timeout_s,
            )
            store_ms = 1000 * (self.clock() - began_s)
            stored = self.link(key, encoded.content_type, store_ms=store_ms)
            return include_file(stored, encoded.body, job.request.response_format)

        return await within(timeout_s, tracing.run_in(self._host_threads, put, step="store"))

    def link(self, key: str, content_type: str, *, store_ms: float = 0.0) -> StoredResult:
        """Sign a link to a stored result.

        Raises:
            StorageError: as `Store.link`.
        """
        expires_in_s = self.settings.link_expires_in_s
        with tracing.span("sign"):
            link = self.storage.link(key, expires_in_s=expires_in_s)
        expires_at = datetime.now(UTC) + timedelta(seconds=expires_in_s)
        return StoredResult(link, key, content_type, expires_at, store_ms)

    async def get_stored(self, key: str) -> StoredObject | None:
        """Return a stored result, or None where there is none. Sends one GET.

        Raises:
            StorageError: as `Store.get`.
        """
        timeout_s = min(_FIND_TIMEOUT_S, self.settings.store_timeout_s)

        def get() -> StoredObject | None:
            return self.storage.get(key, max_bytes=_MAX_RESULT_BYTES, timeout_s=timeout_s)

        return await within(timeout_s, tracing.run_in(self._host_threads, get))

    async def put_json(self, key: str, value: Mapping[str, object]) -> None:
        """Store a small JSON object.

        Raises:
            StorageError: as `Store.put`.
        """
        body = json.dumps(value).encode()
        timeout_s = self.settings.store_timeout_s

        def put() -> None:
            self.storage.put(
                key, body, content_type="application/json", metadata={}, timeout_s=timeout_s
            )

        await within(timeout_s, tracing.run_in(self._host_threads, put))


def include_file(stored: StoredResult, body: bytes, form: ResponseFormat) -> StoredResult:
    """Return `stored` with its file as base64, where the answer has to contain it."""
    return (
        replace(stored, b64_json=base64.b64encode(body).decode()) if form == "b64_json" else stored
    )
