"""The use case: source, engine, store, with deadline, cancellation and timings."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

from PIL.Image import Image

from retouch.editing.admission import Admission
from retouch.editing.params import resolve_params, result_key
from retouch.editing.ports import EditParams, Engine, EngineInfo, EngineOutput, Source, Sources
from retouch.editing.result import StoredResult, build_meta, read_meta, to_object_metadata
from retouch.errors import Cancelled, DeadlineExceeded, InvalidRequest
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
from retouch.storage.port import Store

_MAX_RESULT_BYTES = 64 << 20
_FIND_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class EditorSettings:
    """Where results go and how long things may take."""

    prefix: str = ""
    link_expires_in_s: int = 86400
    store_timeout_s: float = 120.0
    job_timeout_s: float = 600.0


def ignore(_: Progress) -> None:
    """Take no notice of progress."""


class Editor:
    """Runs edits: fetching, encoding and storing of many overlap the model's work on one."""

    def __init__(
        self,
        *,
        sources: Sources,
        engine: Engine,
        store: Store,
        admission: Admission,
        settings: EditorSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources = sources
        self._engine = engine
        self._store = store
        self._admission = admission
        self._settings = settings
        self._clock = clock
        self._model_thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._result_threads = ThreadPoolExecutor(8, thread_name_prefix="result")

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._engine.info

    def close(self) -> None:
        """Let running work end and take no more."""
        self._model_thread.shutdown()
        self._result_threads.shutdown()

    async def run(
        self,
        request: EditRequest,
        *,
        job_id: str,
        request_id: str,
        progress: Callable[[Progress], None] = ignore,
    ) -> EditResult:
        """Edit one image and return the link to the result.

        If the awaiting task is cancelled, the edit ends within a denoising step, and only then does
        the cancellation go on: the model is free when it arrives.

        Raises:
            EditError: any class of `errors`.
        """
        began = self._clock()
        deadline = began + self._settings.job_timeout_s
        with self._admission.place():
            self._require_tokens(request)
            progress(Progress(stage="source"))
            source = await self._load(request.image_url, deadline=deadline)
            work, notes = resolve_params(request, source, self._engine.info.preset, job_id=job_id)
            progress(Progress(stage="queue"))
            queued = self._clock()
            async with self._admission.turn(timeout_s=deadline - queued):
                queue_ms = 1000 * (self._clock() - queued)
                edited = await self._edit(source.image, work, deadline=deadline, progress=progress)
            progress(Progress(stage="store"))
            key = result_key(self._settings.prefix, source.id, job_id, request.file_format)
            notes += [*edited.notes, *self._engine.info.notes]
            meta = build_meta(
                work, source, self._engine.info, notes, job_id=job_id, request_id=request_id
            )
            delivered = await self._deliver(edited.image, request, key, meta, deadline=deadline)
        phases_ms = {
            "queue": queue_ms,
            "fetch": source.fetch_ms,
            "source_decode": source.decode_ms,
            "condition": edited.condition_ms,
            "denoise": edited.denoise_ms,
            "vae_decode": edited.vae_decode_ms,
            "encode": delivered.encode_ms,
            "store": delivered.store_ms,
            "total": 1000 * (self._clock() - began),
        }
        timings = Timings(**{phase: round(ms, 3) for phase, ms in phases_ms.items()})
        return self._answer(delivered, meta.model_copy(update={"timings_ms": timings}))

    @property
    def retry_after_s(self) -> int:
        """Seconds until there is likely to be room for another edit."""
        return self._admission.retry_after_s

    async def find(
        self, request: EditRequest, *, job_id: str, request_id: str
    ) -> EditResult | None:
        """Return the result that an earlier attempt at this job stored, by a new link.

        One GET at most, whether or not there is one; nothing is fetched or edited.

        Raises:
            BadInput: the image's URL cannot be used.
            StorageError: the store could not be asked.
        """
        began = self._clock()
        source_id = await self._sources.identify(request.image_url)
        key = result_key(self._settings.prefix, source_id, job_id, request.file_format)
        get = partial(
            self._store.get,
            key,
            max_bytes=_MAX_RESULT_BYTES,
            timeout_s=min(_FIND_TIMEOUT_S, self._settings.store_timeout_s),
        )
        loop = asyncio.get_running_loop()
        stored = await loop.run_in_executor(self._result_threads, copy_context().run, get)
        if stored is None:
            return None
        get_ms = 1000 * (self._clock() - began)
        meta = read_meta(stored, job_id=job_id, request_id=request_id, get_ms=get_ms)
        if meta is None:
            return None
        link, expires_at = self._link(key, request)
        content_type = encode.CONTENT_TYPES[request.file_format]
        return self._answer(StoredResult(link, key, content_type, expires_at), meta)

    def _require_tokens(self, request: EditRequest) -> None:
        texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
        fields = {
            name: f"must be at most {MAX_PROMPT_TOKENS} tokens"
            for name, text in texts.items()
            if self._engine.count_tokens(text) > MAX_PROMPT_TOKENS
        }
        if fields:
            raise InvalidRequest.for_fields(fields)

    async def _load(self, image_url: str, *, deadline: float) -> Source:
        left_s = self._left_s(deadline)
        try:
            async with asyncio.timeout(left_s):
                return await self._sources.load(image_url, timeout_s=left_s)
        except TimeoutError as error:
            raise DeadlineExceeded("the job's time ran out while its image was loaded") from error

    async def _edit(
        self,
        image: Image,
        work: EditParams,
        *,
        deadline: float,
        progress: Callable[[Progress], None],
    ) -> EngineOutput:
        loop = asyncio.get_running_loop()
        stop = threading.Event()

        def before_step(step: int, steps: int) -> None:
            if stop.is_set():
                raise Cancelled("the caller went away")
            if self._clock() >= deadline:
                raise DeadlineExceeded("the job's time ran out in the middle of the edit")
            stage: Literal["denoise", "vae_decode"] = "denoise" if step < steps else "vae_decode"
            loop.call_soon_threadsafe(progress, Progress(stage=stage, step=step, steps=steps))

        progress(Progress(stage="condition", steps=work.steps))
        edit = partial(self._engine.edit, image, work, before_step=before_step)
        running = loop.run_in_executor(self._model_thread, copy_context().run, edit)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            await _settle(running)
            raise

    async def _deliver(
        self, image: Image, request: EditRequest, key: str, meta: Meta, *, deadline: float
    ) -> StoredResult:
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        deliver = partial(
            self._encode_and_put, image, request, key, meta, deadline=deadline, stop=stop
        )
        try:
            return await loop.run_in_executor(self._result_threads, copy_context().run, deliver)
        except asyncio.CancelledError:
            stop.set()
            raise

    def _encode_and_put(
        self,
        image: Image,
        request: EditRequest,
        key: str,
        meta: Meta,
        *,
        deadline: float,
        stop: threading.Event,
    ) -> StoredResult:
        began = self._clock()
        body = encode.encode(image, request.file_format, quality=request.output_quality)
        encoded = self._clock()
        if stop.is_set():
            raise Cancelled("the caller went away")
        content_type = encode.CONTENT_TYPES[request.file_format]
        self._store.put(
            key,
            body,
            content_type=content_type,
            metadata=to_object_metadata(body, meta),
            timeout_s=min(self._left_s(deadline), self._settings.store_timeout_s),
        )
        link, expires_at = self._link(key, request)
        return StoredResult(
            link=link,
            key=key,
            content_type=content_type,
            expires_at=expires_at,
            encode_ms=1000 * (encoded - began),
            store_ms=1000 * (self._clock() - encoded),
        )

    def _link(self, key: str, request: EditRequest) -> tuple[str, datetime]:
        expires_in_s = self._settings.link_expires_in_s
        link = self._store.link(
            key,
            content_type=encode.CONTENT_TYPES[request.file_format],
            filename=key.rpartition("/")[2],
            expires_in_s=expires_in_s,
        )
        return link, datetime.now(UTC) + timedelta(seconds=expires_in_s)

    def _answer(self, delivered: StoredResult, meta: Meta) -> EditResult:
        result = Result(
            presigned_url=delivered.link,
            bucket=self._store.name,
            object_key=delivered.key,
            content_type=delivered.content_type,
            expires_in=self._settings.link_expires_in_s,
            expires_at=delivered.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            meta=meta,
        )
        return EditResult(result=result)

    def _left_s(self, deadline: float) -> float:
        left_s = deadline - self._clock()
        if left_s <= 0:
            raise DeadlineExceeded("the job's time ran out")
        return left_s


async def _settle(running: asyncio.Future[EngineOutput]) -> None:
    """Wait until `running` has ended, however often the waiting task is cancelled meanwhile."""
    while not running.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([running])
    running.exception()  # seen; the cancellation is what the caller is told
