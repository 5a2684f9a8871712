"""Sources and editors with all they reach, and what every test does with them."""

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from retouch.editing.ports import Source
from retouch.errors import EditError
from retouch.net.download_limiter import DownloadLimiter
from retouch.schema import EditRequest, EditResult, Progress
from retouch.sources.loader import SourceSettings
from support.fakes import (
    PNG,
    REQUEST,
    URL,
    Clock,
    FakeDecoder,
    FakeOrigin,
    FakeStore,
    House,
    Page,
    build_test_sources,
    until,
)

ID = hashlib.sha256(URL.encode()).hexdigest()


KEY = f"p/sources/v1/{ID[:2]}/{ID}"


class World:
    """Sources with all they reach. `restart` forgets what was in memory and keeps the store."""

    def __init__(
        self, page: Page | None = None, *, limiter: DownloadLimiter | None = None, **settings: Any
    ) -> None:
        self.origin = FakeOrigin({URL: page or Page()})
        self.store = FakeStore()
        self.decoder = FakeDecoder()
        self.clock = Clock(1_000_000.0)
        self.monotonic: Callable[[], float] = self.clock
        self._limiter = limiter
        self._settings = SourceSettings(prefix="p/", **settings)
        self.restart()

    def restart(self) -> None:
        self.sources = build_test_sources(
            self.origin,
            self.store,
            decoder=self.decoder,
            now=self.clock,
            clock=self.monotonic,
            limiter=self._limiter,
            settings=self._settings,
        )

    async def load(self, url: str = URL, **options: Any) -> Source:
        return await self.sources.load(url, timeout_s=5, **options)

    async def fill(self) -> Source:
        """Load once, and wait until the cache has it."""
        source = await self.load()
        await until(lambda: KEY in self.store.objects)
        await until(lambda: not self.sources.pending_writes)
        return source

    async def refused(self, kind: type[EditError], url: str = URL) -> EditError:
        with pytest.raises(kind) as caught:
            await self.load(url)
        assert type(caught.value) is kind
        return caught.value


IN_QUEUE = Progress(stage="queue", place=1)


def request(**changes: Any) -> EditRequest:
    return EditRequest.model_validate(REQUEST.model_dump(exclude_unset=True) | changes)


async def run(house: House, /, *, job_id: str = "job-1", **changes: Any) -> EditResult:
    return await house.editor.run(request(**changes), job_id=job_id, request_id="r-1")


async def refused(house: House, kind: type[EditError], **changes: Any) -> EditError:
    with pytest.raises(kind) as caught:
        await run(house, **changes)
    assert type(caught.value) is kind
    return caught.value


async def require_idle(house: House) -> None:
    """Nothing of an edit is left behind, and the next one works."""
    assert house.admission.in_progress == 0
    assert house.engine.running == 0
    results = len(house.store.results)
    house.engine.fault = house.origin.fault = house.store.put_fault = None
    house.engine.at_step = lambda _: None
    await run(house, job_id="the-next", image_url=f"data:;base64,{base64.b64encode(PNG).decode()}")
    assert len(house.store.results) == results + 1
