"""The ports in memory: an origin, a store, an engine and a decoder, with counters and switchable faults.

For unit tests only: they keep the ports' contracts, so that a test fails for the code, not for them.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image

from retouch.editing.admission import Admission
from retouch.editing.editor import Editor
from retouch.editing.ports import (
    EditParams,
    EngineInfo,
    EngineOutput,
    GenerationDefaults,
    PreparedEdit,
)
from retouch.editing.steps import EditorSettings, Steps
from retouch.errors import EditError, SourceStatusError, StorageError
from retouch.images import decode
from retouch.images.kind import Kind
from retouch.net.cache_headers import FOREVER_S
from retouch.net.download import Download
from retouch.net.download_limiter import DownloadLimiter, Place
from retouch.net.url import SourceUrl
from retouch.schema import EditRequest, EditResult
from retouch.sources.loader import SourceLoader, SourceSettings
from retouch.storage.keys import require_key
from retouch.storage.port import StoredObject

URL = "https://pictures.example/cup.png?token=s3cr3t"
REQUEST = EditRequest(image_url=URL, prompt="make colors warmer")
PATIENCE_S = 20.0


def picture(color: str = "teal", size_px: tuple[int, int] = (64, 48)) -> bytes:
    """A PNG of one colour."""
    buffer = BytesIO()
    Image.new("RGB", size_px, color).save(buffer, "PNG")
    return buffer.getvalue()


PNG = picture()


async def until(is_true: Callable[[], object]) -> None:
    """Let the loop and the threads run until something has come true."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_true():  # noqa: ASYNC110 - threads set no event of this loop
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Let every task run as far as it can without a thread."""
    for _ in range(10):
        await asyncio.sleep(0)


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class Asked:
    url: str
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True)
class Page:
    """What an origin has at a URL, and what it says about caching it."""

    body: bytes = PNG
    etag: str | None = None
    last_modified: str | None = None
    max_age_s: int | None = None
    storable: bool = True
    heuristic_s: int | None = None
    max_stale_s: int = FOREVER_S


@dataclass
class FakeOrigin:
    """Every origin there is. It answers while `is_open` is set, and with `fault` if there is one."""

    pages: dict[str, Page] = field(default_factory=lambda: {URL: Page()})
    fault: EditError | None = None
    asked: list[Asked] = field(default_factory=list)
    flying: int = 0
    is_open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.is_open.set()

    async def fetch(
        self,
        url: SourceUrl,
        *,
        timeout_s: float,
        place: Place,
        etag: str | None = None,
        last_modified: str | None = None,
    ) -> Download:
        assert timeout_s > 0
        self.asked.append(Asked(url.canonical, etag, last_modified))
        self.flying += 1
        try:
            await self.is_open.wait()
        finally:
            self.flying -= 1
        if self.fault is not None:
            raise self.fault
        page = self.pages.get(url.canonical)
        if page is None:
            raise SourceStatusError("not here", details={"origin_status": 404}, host=url.host)
        is_current = etag is not None and etag == page.etag
        if not is_current:
            place.hold(len(page.body))
        return Download(
            body=None if is_current else page.body,
            etag=page.etag,
            last_modified=page.last_modified,
            max_age_s=page.max_age_s,
            storable=page.storable,
            heuristic_s=page.heuristic_s,
            max_stale_s=page.max_stale_s,
        )


@dataclass
class FakeDecoder:
    """Decodes in place, and counts."""

    decodes: int = 0
    fault: EditError | None = None
    timeout_s: float = 0.0

    async def decode(
        self, body: bytes, *, timeout_s: float, kind: Kind = "picture"
    ) -> decode.Decoded:
        self.timeout_s = timeout_s
        self.decodes += 1
        if self.fault is not None:
            raise self.fault
        return decode.decode(body, decode.Limits(), kind)


@dataclass(frozen=True)
class Kept:
    body: bytes
    content_type: str
    metadata: Mapping[str, str]


class FakeStore:
    """A bucket. It takes objects while `is_open` is set; a fault is raised by its operation."""

    name = "bucket"

    def __init__(self) -> None:
        self.objects: dict[str, Kept] = {}
        self.gets: list[str] = []
        self.puts: list[str] = []
        self.put_timeouts_s: list[float] = []
        self.get_fault: BaseException | None = None
        self.put_fault: BaseException | None = None
        self.link_fault: BaseException | None = None
        self.list_fault: BaseException | None = None
        self.is_open = threading.Event()
        self.is_open.set()

    @property
    def results(self) -> list[str]:
        return [key for key in self.objects if "results/" in key]

    @property
    def sources(self) -> list[str]:
        return [key for key in self.objects if "sources/" in key]

    def get(self, key: str, *, max_bytes: int, timeout_s: float) -> StoredObject | None:
        require_key(key)
        assert timeout_s > 0
        self.gets.append(key)
        if self.get_fault is not None:
            raise self.get_fault
        kept = self.objects.get(key)
        if kept is None:
            return None
        if len(kept.body) > max_bytes:
            raise StorageError("the stored object is too large", key=key)
        return StoredObject(kept.body, kept.metadata)

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        metadata: Mapping[str, str],
        timeout_s: float,
    ) -> None:
        require_key(key)
        assert timeout_s > 0
        self.puts.append(key)
        self.put_timeouts_s.append(timeout_s)
        assert self.is_open.wait(PATIENCE_S)
        if self.put_fault is not None:
            raise self.put_fault
        self.objects[key] = Kept(body, content_type, dict(metadata))

    def link(self, key: str, *, expires_in_s: int) -> str:
        require_key(key)
        if self.link_fault is not None:
            raise self.link_fault
        return f"https://store.example/{key}?for={expires_in_s}"

    def list_keys(self, prefix: str, *, max_keys: int, timeout_s: float) -> list[str]:
        assert timeout_s > 0
        if self.list_fault is not None:
            raise self.list_fault
        return sorted(key for key in self.objects if key.startswith(prefix))[:max_keys]

    def check(self, *, timeout_s: float) -> None:
        self.put("probe", b"", content_type="text/plain", metadata={}, timeout_s=timeout_s)
        self.get("probe", max_bytes=1, timeout_s=timeout_s)
        del self.objects["probe"]


PRESET = GenerationDefaults(steps=4, guidance_scale=4.0, area_px=64 * 64)


class FakeEngine:
    """Colours the image by its seed. `at_step(step)` runs in the model's thread before each step.

    At `stay_at` it repeats the step until the edit is cancelled.
    """

    def __init__(self, preset: GenerationDefaults = PRESET, *, notes: tuple[str, ...] = ()) -> None:
        self.info = EngineInfo("fake", "0", "float32", "resident", preset, notes)
        self.at_step: Callable[[int], None] = lambda _: None
        self.stay_at = -1
        self.at_finish: Callable[[], None] = lambda: None
        self.fault: BaseException | None = None
        self.prepare_fault: EditError | None = None
        self.at_end: Callable[[], None] = lambda: None
        self.prepared = 0
        self.conditioned = 0
        self.masks: list[Image.Image | None] = []
        self.edits: list[EditParams] = []
        self.steps_taken = 0
        self.running = 0
        self.most_running = 0

    def count_tokens(self, text: str) -> int:
        return len(text.split(","))

    def prepare(
        self,
        images: Sequence[Image.Image],
        params: EditParams,
        *,
        mask: Image.Image | None = None,
    ) -> PreparedEdit:
        self.masks.append(mask)
        if self.prepare_fault is not None:
            raise self.prepare_fault
        self.prepared += 1
        return PreparedEdit(params, list(images))

    def finish(self, output: EngineOutput) -> Image.Image:
        self.at_finish()
        image: Image.Image = output.pixels
        return image

    def edit(self, prepared: PreparedEdit, *, on_step: Callable[[int, int], None]) -> EngineOutput:
        [*_, image], work = prepared.inputs, prepared.params
        self.edits.append(work)
        self.conditioned += prepared.conditioning is None
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            for step in range(work.run_steps + 1):
                self.at_step(step)
                on_step(step, work.run_steps)
                ends_s = time.monotonic() + PATIENCE_S
                while step == self.stay_at and time.monotonic() < ends_s:
                    time.sleep(0.001)
                    on_step(step, work.run_steps)
                self.steps_taken += step < work.run_steps
                if 0 < step <= prepared.previews:
                    prepared.on_preview(EngineOutput(image.resize((64, 64)), 0.0, 0.0, 0.0))
            if self.fault is not None:
                raise self.fault
            self.at_end()
        finally:
            self.running -= 1
        size_px = (work.width_px, work.height_px)
        tint = Image.new("RGB", size_px, f"#{work.seed % (1 << 24):06x}")
        edited = Image.blend(image.resize(size_px), tint, 0.5)
        return EngineOutput(edited, 1.0, 2.0, 3.0, notes=("done",), conditioning="known")


class Pause:
    """Holds a thread at a point until it is let go; a test waits until it is there."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._go = threading.Event()

    def hold(self) -> None:
        self._reached.set()
        assert self._go.wait(PATIENCE_S)

    async def reached(self) -> None:
        await until(self._reached.is_set)

    def release(self) -> None:
        self._go.set()


def build_test_sources(
    origin: FakeOrigin,
    store: FakeStore,
    *,
    decoder: FakeDecoder | None = None,
    now: Callable[[], float] | None = None,
    clock: Callable[[], float] | None = None,
    limiter: DownloadLimiter | None = None,
    settings: SourceSettings | None = None,
) -> SourceLoader:
    return SourceLoader(
        store=store,
        downloader=origin,
        decoder=decoder or FakeDecoder(),
        limiter=limiter or DownloadLimiter(),
        settings=settings or SourceSettings(prefix="p/"),
        now=now or Clock(),
        clock=clock or now or Clock(),
    )


@dataclass
class House:
    """An editor with everything round it."""

    origin: FakeOrigin = field(default_factory=FakeOrigin)
    store: FakeStore = field(default_factory=FakeStore)
    engine: FakeEngine = field(default_factory=FakeEngine)
    clock: Clock = field(default_factory=Clock)
    max_queue: int = 32
    settings: EditorSettings = field(default_factory=lambda: EditorSettings(prefix="p/"))

    def __post_init__(self) -> None:
        self.admission = Admission(max_queue=self.max_queue, on_model_lost=self._note_loss)
        self.lost_models = 0
        steps = Steps(
            sources=build_test_sources(self.origin, self.store),
            engine=self.engine,
            storage=self.store,
            settings=self.settings,
            clock=self.clock,
            on_model_lost=self.admission.lose_model,
        )
        self.editor = Editor(steps, self.admission)

    async def find(
        self, request: EditRequest, *, job_id: str, request_id: str
    ) -> EditResult | None:
        """The answer from the results of an earlier attempt, if it stored all of them."""
        found = await self.editor.find(request, job_id=job_id, request_id=request_id)
        made = [one for one in found if one]
        return self.editor.answer(made) if len(made) == len(found) else None

    def _note_loss(self) -> None:
        self.lost_models += 1
