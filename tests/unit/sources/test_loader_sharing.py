import asyncio
import base64
import gc
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from support.fakes import PNG, URL, Page, settle, until
from support.worlds import KEY, World

from retouch.errors import Overloaded, SourceStatusError, StoreUnavailable
from retouch.net.download_limiter import DownloadLimiter
from retouch.sources.loader import SourceLoader


async def test_a_load_during_the_cache_write_fetches_and_decodes_nothing() -> None:
    world = World()
    world.store.is_open.clear()
    await world.load()
    again = await world.load()
    assert (again.cached, again.fetch_ms, again.decode_ms) == (True, 0.0, 0.0)
    assert again.size_bytes == len(PNG)
    assert len(world.origin.asked) == 1
    assert world.decoder.decodes == 1
    assert world.store.gets == [KEY]
    world.store.is_open.set()
    await until(lambda: not world.sources.pending_writes)
    assert (await world.load()).cached
    assert world.store.gets == [KEY, KEY]


@pytest.mark.parametrize(
    ("fault", "told"),
    [(StoreUnavailable("down"), "store_unavailable"), (ValueError("a bug"), None)],
)
async def test_a_failed_cache_write_costs_the_edit_nothing(
    fault: Exception, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.store.put_fault = fault
    assert (await world.load()).size_bytes == len(PNG)
    await until(lambda: "cache.not_kept" in caplog.messages)
    (record,) = [record for record in caplog.records if record.message == "cache.not_kept"]
    if told:
        assert vars(record)["fields"] == {"code": told}
    else:
        assert record.levelno == logging.ERROR
        assert record.exc_info
    await world.load()
    assert len(world.origin.asked) == 2


async def test_a_cache_write_cancelled_with_the_loop_reports_no_error() -> None:
    world = World()
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    world.store.is_open.clear()
    before = asyncio.all_tasks()
    await world.load()
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await settle()
    world.store.is_open.set()
    gc.collect()
    assert complaints == []


async def test_twenty_loads_at_once_fetch_and_decode_once() -> None:
    world = World()
    world.origin.is_open.clear()
    loads = [asyncio.create_task(world.load()) for _ in range(20)]
    await until(lambda: world.origin.flying)
    world.origin.is_open.set()
    sources = await asyncio.gather(*loads)
    assert len({id(source) for source in sources}) == 1
    assert len(world.origin.asked) == 1
    assert world.decoder.decodes == 1


async def test_urls_of_one_canonical_form_are_one_source() -> None:
    world = World()
    await world.fill()
    source = await world.load(
        URL.replace("https://pictures.example", "HTTPS://Pictures.Example:443")
    )
    assert source.cached
    assert len(world.origin.asked) == 1


async def test_a_cancelled_load_does_not_end_the_download_of_others() -> None:
    world = World()
    world.origin.is_open.clear()
    first, second = (asyncio.create_task(world.load()) for _ in range(2))
    await until(lambda: world.origin.flying)
    first.cancel()
    await settle()
    assert world.origin.flying == 1
    world.origin.is_open.set()
    assert (await second).size_bytes == len(PNG)
    assert first.cancelled()


async def test_cancelling_the_last_load_ends_the_download_and_remembers_nothing() -> None:
    world = World()
    world.origin.is_open.clear()
    load = asyncio.create_task(world.load())
    await until(lambda: world.origin.flying)
    load.cancel()
    await settle()
    assert world.origin.flying == 0
    world.origin.is_open.set()
    await world.load()
    assert world.store.gets == [KEY, KEY]


async def test_the_cache_write_runs_in_the_context_of_its_request() -> None:
    world = World()
    request: ContextVar[str] = ContextVar("request", default="")
    seen: list[str] = []
    put = world.store.put

    def noting(*args: Any, **kwargs: Any) -> None:
        seen.append(request.get())
        put(*args, **kwargs)

    world.store.put = noting  # type: ignore[method-assign]
    request.set("r-1")
    await world.fill()
    assert seen == ["r-1"]


async def test_close_waits_for_a_running_cache_write() -> None:
    world = World()
    await world.load()
    close: Callable[[], None] = world.sources.close
    await asyncio.to_thread(close)
    assert KEY in world.store.objects
    assert isinstance(world.sources, SourceLoader)
    with pytest.raises(RuntimeError, match="shutdown"):
        await world.load("data:,x")


async def test_slow_cache_writes_delay_neither_a_data_url_nor_another_source() -> None:
    world = World()
    world.store.is_open.clear()
    urls = [f"{URL}&{n}" for n in range(12)]
    world.origin.pages |= {url: Page() for url in urls}
    for url in urls:
        await world.load(url)
    async with asyncio.timeout(1):
        await world.load(f"data:;base64,{base64.b64encode(PNG).decode()}")
        await world.load()
    world.store.is_open.set()


async def test_cache_writes_that_wait_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.store.is_open.clear()
    urls = [f"{URL}&{n}" for n in range(17)]
    world.origin.pages |= {url: Page() for url in urls}
    for url in urls:
        await world.load(url)
    assert world.sources.pending_writes == 16
    assert "cache.not_kept" in caplog.messages
    world.store.is_open.set()


async def test_a_load_holds_its_place_until_the_image_is_decoded() -> None:
    world = World(limiter=DownloadLimiter(max_downloads=1))
    world.origin.is_open.clear()
    load = asyncio.create_task(world.load())
    await until(lambda: world.origin.flying)
    for other in (URL + "&2", f"data:;base64,{base64.b64encode(PNG).decode()}"):
        await world.refused(Overloaded, other)
    world.origin.is_open.set()
    await load
    await world.refused(SourceStatusError, URL + "&2")  # asked, so the refusal was not remembered


@pytest.mark.parametrize("kind", ["cached", "fetched", "data"])
async def test_the_bytes_of_every_kind_of_source_count(kind: str) -> None:
    world = World()
    await world.fill()
    small = World(limiter=DownloadLimiter(max_bytes=len(PNG) - 1))
    if kind == "cached":
        small.store.objects = world.store.objects
    url = f"data:;base64,{base64.b64encode(PNG).decode()}" if kind == "data" else URL
    await small.refused(Overloaded, url)
    assert len(small.origin.asked) == (kind == "fetched")
