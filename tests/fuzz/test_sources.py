import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.fakes import PNG, Clock, FakeDecoder, FakeStore, until

from retouch.editing.ports import Source
from retouch.errors import EditError, SourceStatusError, SourceTimedOut
from retouch.net.download import Download
from retouch.net.download_limiter import DownloadLimiter, Place
from retouch.net.url import SourceUrl
from retouch.sources.loader import SourceLoader, SourceSettings

pytestmark = pytest.mark.fuzz

T = TypeVar("T")
URLS = [f"https://pictures.example/{name}" for name in "ab"]
FOUND = Download(PNG, None, None, None, storable=False)


class Origin:
    """Answers a fetch when the test says so; at most one may run for a URL."""

    def __init__(self) -> None:
        self.answers: dict[str, asyncio.Future[Download]] = {}
        self.asked = 0

    async def fetch(
        self,
        url: SourceUrl,
        *,
        timeout_s: float,
        place: Place,
        etag: str | None,
        last_modified: str | None,
    ) -> Download:
        assert url.canonical not in self.answers, "two fetches of one URL"
        self.asked += 1
        self.answers[url.canonical] = asyncio.get_running_loop().create_future()
        try:
            return await self.answers[url.canonical]
        finally:
            del self.answers[url.canonical]


class Sharing(RuleBasedStateMachine):
    """Callers start, are cancelled and finish in any order: they share downloads independently."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.origin = Origin()
        self.clock = Clock()
        self.sources = SourceLoader(
            store=FakeStore(),
            downloader=self.origin,
            decoder=FakeDecoder(),
            limiter=DownloadLimiter(),
            settings=SourceSettings(),
            now=self.clock,
            clock=self.clock,
        )
        self.waiting: dict[str, list[asyncio.Task[Source]]] = {url: [] for url in URLS}
        self.fetches = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def call(self, url: str) -> asyncio.Task[Source]:
        return self.loop.create_task(self.sources.load(url, timeout_s=5))

    async def until_as_expected(self) -> None:
        """Wait until exactly the URLs that have a waiting caller are being fetched."""
        expected = {url for url, callers in self.waiting.items() if callers}
        await until(lambda: set(self.origin.answers) == expected)

    def respond(self, url: str, answer: Download | EditError) -> None:
        answers = self.origin.answers[url]
        if isinstance(answer, Download):
            answers.set_result(answer)
        else:
            answers.set_exception(answer)

    @rule(url=st.sampled_from(URLS), callers=st.integers(1, 3))
    def start(self, url: str, callers: int) -> None:
        self.fetches += not self.waiting[url]
        self.waiting[url] += [self.call(url) for _ in range(callers)]
        self.run(self.until_as_expected())

    @rule(url=st.sampled_from(URLS), turns=st.integers(0, 4))
    def start_and_cancel_at_once(self, url: str, turns: int) -> None:
        async def visit() -> None:
            caller = self.call(url)
            for _ in range(turns):
                await asyncio.sleep(0)
            caller.cancel()
            await asyncio.wait([caller])
            assert caller.cancelled()

        self.run(visit())
        self.run(self.until_as_expected())
        may_have_asked = not self.waiting[url]
        assert self.fetches <= self.origin.asked <= self.fetches + may_have_asked
        self.fetches = self.origin.asked

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        url = data.draw(st.sampled_from([url for url in URLS if self.waiting[url]]))
        caller = self.waiting[url].pop(data.draw(st.integers(0, len(self.waiting[url]) - 1)))

        async def go() -> None:
            caller.cancel()
            await asyncio.wait([caller])
            assert caller.cancelled()

        self.run(go())
        self.run(self.until_as_expected())

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data(), fails=st.sampled_from([None, SourceTimedOut, SourceStatusError]))
    def finish(self, data: st.DataObject, fails: type[EditError] | None) -> None:
        url = data.draw(st.sampled_from([url for url in URLS if self.waiting[url]]))
        leaves = data.draw(st.none() | st.integers(0, len(self.waiting[url]) - 1))
        callers, self.waiting[url] = self.waiting[url], []

        async def answer() -> list[Source | BaseException]:
            self.respond(url, FOUND if fails is None else fails("no"))
            if leaves is not None:
                callers.pop(leaves).cancel()
            return await asyncio.gather(*callers, return_exceptions=True)

        results = self.run(answer())
        self.run(self.until_as_expected())
        self.clock.now_s += 61  # longer than any failure is remembered
        if fails is None:
            assert all(isinstance(result, Source) for result in results)
            assert len({id(result) for result in results}) <= 1
        else:
            assert all(type(result) is fails for result in results)

    @invariant()
    def a_waiting_caller_still_waits(self) -> None:
        assert not any(caller.done() for callers in self.waiting.values() for caller in callers)

    @invariant()
    def nothing_is_fetched_twice(self) -> None:
        assert self.origin.asked == self.fetches

    def teardown(self) -> None:
        async def cancel_all() -> None:
            callers_left = [caller for callers in self.waiting.values() for caller in callers]
            for caller in callers_left:
                caller.cancel()
            await asyncio.gather(*callers_left, return_exceptions=True)
            await until(lambda: len(asyncio.all_tasks()) == 1)

        self.run(cancel_all())
        assert not self.origin.answers
        self.sources.close()
        self.loop.close()


Sharing.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestSharing = Sharing.TestCase
