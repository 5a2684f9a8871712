"""Which copy answers: request field `cache`, signed URLs, stale copies, clocks and an outage."""

import asyncio

import pytest
from support.fakes import PNG, URL, Asked, Clock, Page, picture, settle, until
from support.worlds import KEY, World

from retouch.errors import (
    SourceStatusError,
    SourceTimedOut,
    StorageError,
    StoreUnavailable,
)

ETAG = '"v1"'
RED = picture("red")


async def test_no_store_neither_reads_nor_keeps_a_copy() -> None:
    world = World()
    await world.fill()
    world.origin.pages[URL] = Page(RED)
    source = await world.load(cache="no-store")
    await settle()
    assert (source.cached, source.image.getpixel((0, 0))) == (False, (255, 0, 0))
    assert world.origin.asked[1] == Asked(URL)
    assert world.store.gets == world.store.puts == [KEY]


async def test_revalidate_asks_the_origin_about_a_fresh_copy() -> None:
    world = World(Page(etag=ETAG))
    await world.fill()
    assert (await world.load(cache="revalidate")).cached
    assert world.origin.asked[1] == Asked(URL, ETAG)
    world.origin.pages[URL] = Page(RED, etag='"v2"')
    source = await world.load(cache="revalidate")
    assert (source.cached, source.image.getpixel((0, 0))) == (False, (255, 0, 0))
    await until(lambda: world.store.objects[KEY].body == RED)


async def test_revalidate_is_never_answered_with_a_stale_copy() -> None:
    world = World(Page(etag=ETAG))
    await world.fill()
    world.origin.fault = SourceTimedOut("late")
    with pytest.raises(SourceTimedOut):
        await world.load(cache="revalidate")


@pytest.mark.parametrize("cache", ["no-store", "revalidate"])
async def test_a_failure_without_the_copy_is_not_that_of_callers_who_take_it(cache: str) -> None:
    world = World()
    await world.fill()
    world.origin.fault = SourceTimedOut("late")
    with pytest.raises(SourceTimedOut):
        await world.load(cache=cache)
    assert (await world.load()).cached


@pytest.mark.parametrize("cache", ["no-store", "revalidate"])
async def test_asking_the_origin_ends_the_memory_of_a_failure(cache: str) -> None:
    world = World()
    world.origin.fault = SourceStatusError("gone")
    await world.refused(SourceStatusError)
    world.origin.fault = None
    await world.load(cache=cache)
    await world.load()


async def test_without_cache_control_a_picture_just_replaced_is_seen() -> None:
    world = World(Page(etag=ETAG, heuristic_s=0))
    await world.fill()
    world.origin.pages[URL] = Page(RED, etag='"v2"', heuristic_s=0)
    world.clock.now_s += 1
    assert (await world.load()).image.getpixel((0, 0)) == (255, 0, 0)


async def test_a_confirmation_keeps_the_lifetime_that_the_origin_gave() -> None:
    world = World(Page(etag=ETAG, max_age_s=600))
    await world.fill()
    world.origin.pages[URL] = Page(etag=ETAG)
    world.clock.now_s += 600
    await world.load()
    world.clock.now_s += 599
    await world.load()
    assert len(world.origin.asked) == 2
    world.clock.now_s += 1
    await world.load()
    assert len(world.origin.asked) == 3


async def test_what_is_behind_the_image_is_not_kept() -> None:
    world = World(Page(PNG + bytes(1 << 20)))
    source = await world.fill()
    assert world.store.objects[KEY].body == PNG
    world.restart()
    again = await world.load()
    assert again.content_sha256 == source.content_sha256
    assert again.size_bytes == source.size_bytes == len(PNG)


async def test_a_source_whose_caller_left_before_it_was_decoded_is_not_kept() -> None:
    world = World()
    world.origin.is_open.clear()
    load = asyncio.create_task(world.load())
    await until(lambda: world.origin.flying)
    load.cancel()
    world.origin.is_open.set()
    await settle()
    assert world.store.puts == []


async def test_a_stale_copy_answers_for_its_time_only() -> None:
    world = World(max_stale_s=1000)
    await world.fill()
    world.origin.fault = SourceTimedOut("late")
    world.clock.now_s += 3600 + 999
    assert (await world.load()).stale
    world.clock.now_s += 11
    await world.refused(SourceTimedOut)


@pytest.mark.parametrize(
    ("max_stale_s", "stale_s", "is_used"),
    [(0, 0, False), (500, 499, True), (500, 500, False), (5000, 1000, False)],
)
async def test_a_copy_is_used_past_its_lifetime_no_longer_than_its_origin_allows(
    max_stale_s: int, stale_s: int, *, is_used: bool
) -> None:
    world = World(Page(max_stale_s=max_stale_s), max_stale_s=1000)
    await world.fill()
    world.restart()
    world.origin.fault = SourceTimedOut("late")
    world.clock.now_s += 3600 + stale_s
    if is_used:
        assert (await world.load()).stale
    else:
        await world.refused(SourceTimedOut)


async def test_not_modified_may_forbid_that_the_copy_is_used_past_its_lifetime() -> None:
    world = World(Page(etag=ETAG))
    await world.fill()
    world.origin.pages[URL] = Page(etag=ETAG, max_stale_s=0)
    world.clock.now_s += 3600
    assert (await world.load()).cached
    world.origin.fault = SourceTimedOut("late")
    assert (await world.load()).cached
    world.clock.now_s += 3600
    await world.refused(SourceTimedOut)


async def test_a_new_lifetime_holds_for_a_copy_that_was_still_fresh() -> None:
    world = World(Page(etag=ETAG))
    await world.fill()
    world.origin.pages[URL] = Page(etag=ETAG, max_age_s=0)
    await world.load(cache="revalidate")  # confirmed, and stale at once
    world.origin.pages[URL] = Page(RED, etag='"v2"', max_age_s=5)
    source = await world.load()
    assert (source.cached, source.image.getpixel((0, 0))) == (False, (255, 0, 0))


async def test_a_confirmation_does_not_hold_for_the_copy_that_replaces_it() -> None:
    world = World(Page(etag=ETAG))
    await world.fill()
    await world.load(cache="revalidate")  # confirmed for an hour
    world.clock.now_s += 1
    world.origin.pages[URL] = Page(RED, etag='"v2"', max_age_s=5)
    await world.load(cache="revalidate")
    await until(lambda: not world.sources.pending_writes)
    world.clock.now_s += 5
    await world.load()
    assert world.origin.asked[-1] == Asked(URL, '"v2"')
    assert len(world.origin.asked) == 4


def signed(expires_in_s: int, *, signature: str = "ab") -> str:
    expires = 1_000_000 + expires_in_s
    return (
        f"https://pictures.example/cup.png?AWSAccessKeyId=k&Expires={expires}&Signature={signature}"
    )


async def test_a_signed_url_is_kept_no_longer_than_it_says() -> None:
    world = World()
    url = signed(900)
    world.origin.pages[url] = Page()
    await world.load(url)
    await until(lambda: world.store.sources)
    await until(lambda: not world.sources.pending_writes)
    world.clock.now_s += 899
    assert (await world.load(url)).cached
    world.clock.now_s += 1
    world.origin.fault = SourceTimedOut("late")
    await world.refused(SourceTimedOut, url)
    assert len(world.store.gets) == 2


@pytest.mark.parametrize("expires_in_s", [-5, 0, 30])
async def test_a_signed_url_that_nobody_can_use_again_is_not_kept(expires_in_s: int) -> None:
    world = World()
    urls = [signed(expires_in_s, signature=f"{n:x}") for n in range(5)]
    world.origin.pages |= {url: Page() for url in urls}
    for url in urls:
        await world.load(url)
    await settle()
    assert world.store.puts == []


async def test_lifetimes_in_memory_do_not_depend_on_the_wall_clock() -> None:
    world = World(Page(etag=ETAG))
    world.monotonic = monotonic = Clock()
    world.restart()
    await world.fill()
    world.clock.now_s += 3600
    await world.load()  # confirmed
    world.clock.now_s += 10**6
    await world.load()
    world.clock.now_s -= 10**7
    await world.load()
    assert len(world.origin.asked) == 2
    monotonic.now_s += 3600
    await world.load()
    assert len(world.origin.asked) == 3
    other = URL + "&gone"
    await world.refused(SourceStatusError, other)
    for jump_s in (10**6, -(10**7)):
        world.clock.now_s += jump_s
        await world.refused(SourceStatusError, other)
    assert len(world.origin.asked) == 4
    monotonic.now_s += 60
    await world.refused(SourceStatusError, other)
    assert len(world.origin.asked) == 5


async def test_during_an_outage_of_the_store_only_the_first_edit_waits_for_it() -> None:
    world = World(Page(storable=False))
    world.store.get_fault = StoreUnavailable("down")
    for _ in range(3):
        assert (await world.load()).size_bytes == len(PNG)
    assert len(world.store.gets) == 1
    world.store.get_fault = None
    world.clock.now_s += 10
    await world.load()
    assert len(world.store.gets) == 2


async def test_a_fault_of_one_object_is_no_outage() -> None:
    world = World(Page(storable=False))
    world.store.get_fault = StorageError("too large")
    for _ in range(2):
        await world.load()
    assert len(world.store.gets) == 2
