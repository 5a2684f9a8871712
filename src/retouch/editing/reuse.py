"""Reuse of stored results: equal requests with an explicit seed share one edit and one object.

An index object under the hash of everything that decides the result's bytes names the result's key.
"""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from weakref import WeakValueDictionary

from retouch import tracing
from retouch.editing.job import Job
from retouch.editing.ports import EditParams, EngineInfo
from retouch.editing.result import read_meta
from retouch.editing.steps import Steps
from retouch.errors import DeadlineExceeded, StorageError
from retouch.logs import event
from retouch.schema import EditRequest, Meta
from retouch.storage.keys import reuse_key

_log = logging.getLogger(__name__)
_ENGINE_VERSION = 1
"""Raise it with a change that gives other bytes for the same parameters."""

# Names of sources, whose content counts instead, and what `EditParams` holds with defaults filled in.
# A field that is not listed counts, so that a new one is never forgotten.
_NOT_IN_KEY = {
    "image_url",
    "image_urls",
    "mask_url",
    "strength",
    "cache",
    "response_format",
    "webhook",
    "webhook_progress",
    "prompt",
    "negative_prompt",
    "seed",
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "width",
    "height",
    "loras",
    "output_format",
    "profile",
}


def fingerprint(
    request: EditRequest, params: EditParams, content: Sequence[str], info: EngineInfo, *notes: str
) -> str:
    """Hash everything that decides the bytes of a result, and its `notes`: 64 hex digits."""
    parts = {
        "engine": _ENGINE_VERSION,
        "info": asdict(info) | {"max_areas_px": None},  # a limit, which changes no result
        "params": asdict(params),
        "notes": notes,
        "sources": content,
        "format": request.file_format,
        "request": request.model_dump(exclude=_NOT_IN_KEY),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Made:
    """A stored result: its key, its metadata, and the file where it was read from the store."""

    key: str
    content_type: str
    meta: Meta
    body: bytes = b""


@dataclass
class Flight:
    """The equal requests under way. `made` has the results once one has them, `made_by` its trace."""

    fingerprint: str
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    made: Sequence[Made] = ()
    made_by: tracing.Link | None = None


class ReuseIndex:
    """Finds what an equal request made. Belongs to one event loop.

    A result is reused for as long as its first link is valid: so a bucket's
    lifecycle rule must keep results for twice PRESIGN_EXPIRY.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._flights: WeakValueDictionary[str, Flight] = WeakValueDictionary()
        self._writes: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until the index objects are written."""
        if self._writes:
            await asyncio.wait(self._writes)

    def join(self, fingerprint: str) -> Flight:
        """Return the flight of all requests with this fingerprint; it ends with its last reference."""
        return self._flights.setdefault(fingerprint, Flight(fingerprint))

    @asynccontextmanager
    async def turn(self, flight: Flight, *, timeout_s: float) -> AsyncIterator[None]:
        """Wait until no equal request is under way, and hold others back.

        A turn, not a shared task: each request keeps its own deadline and cancellation, and where
        the first one fails the next one edits.

        Raises:
            DeadlineExceeded: the equal request did not end within `timeout_s`.
        """
        try:
            with tracing.span("reuse.wait"):
                async with asyncio.timeout(timeout_s):
                    await flight.turn.acquire()
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the job's time ran out while an equal request was under way"
            ) from error
        try:
            yield
        finally:
            flight.turn.release()

    async def find(self, flight: Flight, job: Job) -> Sequence[Made]:
        """Return the stored results of an equal request, if they are whole and not too old, or none.

        Sends one GET to the store, and one a result. A store that fails counts as one without them.
        """
        tracing.link(flight.made_by)
        if flight.made and job.request.response_format == "url":
            return flight.made
        try:
            named = [(one.key, one.content_type) for one in flight.made]  # the index may come later
            named = named or await self._read_index(flight.fingerprint)
            read = await asyncio.gather(*(self._read_one(*one, job) for one in named))
        except StorageError as error:
            event(_log, "reuse.unknown", level=logging.WARNING, code=error.code, **error.context)
            return []
        made = [one for one in read if one]
        return made if len(made) == len(read) else []

    async def _read_index(self, fingerprint: str) -> list[tuple[str, str]]:
        settings = self._steps.settings
        index = await self._steps.get_stored(reuse_key(settings.prefix, fingerprint))
        if index is None:
            return []
        try:
            entry = json.loads(index.body)
            keys, content_type = list(map(str, entry["keys"])), str(entry["content_type"])
            age_s = time.time() - float(entry["made_at"])
        except (KeyError, TypeError, ValueError):
            return []
        return [] if age_s >= settings.link_expires_in_s else [(key, content_type) for key in keys]

    async def _read_one(self, key: str, content_type: str, job: Job) -> Made | None:
        found = await self._steps.get_stored(key)
        if found is None:
            return None
        meta = read_meta(found, job_id=job.id, request_id=job.request_id, get_ms=0.0)
        return Made(key, content_type, meta, found.body) if meta else None

    def keep(self, flight: Flight, made: Sequence[Made]) -> None:
        """Give `made` to the equal requests under way, and to later ones by an index object."""
        flight.made, flight.made_by = made, tracing.current()
        # The task refers to the flight, so that it lasts until the index can be read.
        task = asyncio.create_task(self._write(flight, made))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, flight: Flight, made: Sequence[Made]) -> None:
        entry = {
            "keys": [one.key for one in made],
            "content_type": made[0].content_type,
            "made_at": int(time.time()),
        }
        key = reuse_key(self._steps.settings.prefix, flight.fingerprint)
        try:
            await self._steps.put_json(key, entry)
        except StorageError as error:
            event(_log, "reuse.not_kept", level=logging.WARNING, code=error.code, **error.context)
