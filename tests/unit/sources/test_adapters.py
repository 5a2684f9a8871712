"""LoRA files at URLs: fetched once, by their SHA-256."""

import asyncio
import hashlib

import pytest
from support.fakes import FakeOrigin, Page, until

from retouch.editing.adapter_ports import HeldAdapter
from retouch.editing.ports import AdapterInfo
from retouch.errors import (
    DownloadsFull,
    Overloaded,
    SourceStatusError,
    SourceTimedOut,
    SourceTooLarge,
    UnsupportedLora,
)
from retouch.net.download_limiter import DownloadLimiter
from retouch.sources.adapters import AdapterLoader

BODY = b"weights"
URL, SHA = "https://a.example/l?x=1", hashlib.sha256(BODY).hexdigest()


class FakeKeeper:
    def __init__(self) -> None:
        self.kept: dict[str, HeldAdapter] = {}

    def find(self, sha256: str) -> HeldAdapter | None:
        return self.kept.get(sha256)

    def add(self, body: bytes, sha256: str) -> HeldAdapter:
        if hashlib.sha256(body).hexdigest() != sha256:
            raise UnsupportedLora("another file")
        self.kept[sha256] = HeldAdapter(AdapterInfo("a", sha256, 1, 4), body)
        return self.kept[sha256]


class World:
    def __init__(self, **limits: int) -> None:
        self.origin, self.keeper = FakeOrigin({URL: Page(BODY)}), FakeKeeper()
        limiter = DownloadLimiter(**limits)
        self.loader = AdapterLoader(downloader=self.origin, limiter=limiter, keeper=self.keeper)

    async def load(self, url: str = URL, sha256: str = SHA) -> HeldAdapter:
        return await self.loader.load(url, sha256, timeout_s=5)


async def test_a_file_is_fetched_once_and_then_found_by_its_hash() -> None:
    world = World()
    first = await world.load()
    assert await world.load("https://elsewhere.example/l") is first
    assert len(world.origin.asked) == 1


async def test_equal_requests_at_the_same_time_share_a_download() -> None:
    world = World()
    world.origin.is_open.clear()
    both = [asyncio.create_task(world.load()) for _ in range(2)]
    await until(lambda: world.origin.flying == 1)
    world.origin.is_open.set()
    one, other = await asyncio.gather(*both)
    assert one is other
    assert len(world.origin.asked) == 1


async def test_a_caller_with_the_same_hash_and_another_url_waits_for_nobody() -> None:
    world = World()
    world.origin.pages["https://fast.example/l"] = Page(BODY)
    world.origin.is_open.clear()
    slow = asyncio.create_task(world.load())
    await until(lambda: world.origin.flying == 1)
    fast = asyncio.create_task(world.load("https://fast.example/l"))
    await until(lambda: world.origin.flying == 2)
    world.origin.is_open.set()
    await asyncio.gather(slow, fast)


async def test_a_file_with_another_hash_is_refused_and_not_kept() -> None:
    world = World()
    with pytest.raises(UnsupportedLora):
        await world.load(sha256="0" * 64)
    assert not world.keeper.kept


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (
            SourceTooLarge("the image is over 9 bytes (MAX_IMAGE_BYTES)"),
            "the file is over 9 bytes (a quarter of LORA_CACHE_GIB)",
        ),
        (
            SourceTimedOut("the image did not arrive within 5 s (SOURCE_TIMEOUT_SECONDS)"),
            "the file did not arrive within 5 s",
        ),
        (
            SourceStatusError("the host of image_url answered 404 instead of an image"),
            "the host of image_url answered 404 instead of a file",
        ),
    ],
)
async def test_errors_of_the_download_keep_their_code_and_speak_of_a_file(
    fault: SourceTooLarge | SourceTimedOut | SourceStatusError, text: str
) -> None:
    world = World()
    world.origin.fault = fault
    with pytest.raises(type(fault)) as caught:
        await world.load()
    assert (caught.value.message, caught.value.code) == (text, fault.code)


async def test_the_bytes_on_their_way_are_bounded() -> None:
    world = World(max_bytes=len(BODY) - 1)
    with pytest.raises((Overloaded, DownloadsFull)):
        await world.load()
    world.loader.close()
