import base64
import hashlib

import pytest
from support.fakes import PNG, URL, Asked, Kept, Page, picture, until
from support.worlds import ID, KEY, World

from retouch.errors import (
    CacheReadFailed,
    InvalidRequest,
    SourceTimedOut,
    SourceTooLarge,
    UnsupportedImage,
)

ETAG = '"v1"'


async def test_a_first_load_fetches_decodes_and_caches_the_original_bytes() -> None:
    world = World(Page(etag=ETAG, last_modified="Sat, 01 Aug 2026 00:00:00 GMT"))
    source = await world.fill()
    assert world.origin.asked == [Asked(URL)]
    assert (source.id, source.width_px, source.height_px) == (ID, 64, 48)
    assert (source.format, source.size_bytes) == ("png", len(PNG))
    assert (source.cached, source.stale, source.notes) == (False, False, ())
    assert source.fetch_ms > 0
    assert source.decode_ms > 0
    kept = world.store.objects[KEY]
    assert kept.body == PNG
    assert kept.content_type == "application/octet-stream"
    assert kept.metadata == {
        "sha256": hashlib.sha256(PNG).hexdigest(),
        "fetched-at": "1000000",
        "fresh-seconds": "3600",
        "etag": ETAG,
        "last-modified": "Sat, 01 Aug 2026 00:00:00 GMT",
    }


async def test_a_fresh_copy_is_used_without_a_fetch_or_a_write() -> None:
    world = World()
    await world.fill()
    world.restart()
    world.clock.now_s += 3599
    source = await world.load()
    assert (source.cached, source.stale, source.notes) == (True, False, ())
    assert source.image.getpixel((0, 0)) == (0, 128, 128)
    assert len(world.origin.asked) == 1
    assert len(world.store.puts) == 1
    assert world.store.gets == [KEY, KEY]


async def test_a_stale_copy_is_revalidated_with_its_validators() -> None:
    world = World(Page(etag=ETAG, last_modified="Sat, 01 Aug 2026 00:00:00 GMT"))
    await world.fill()
    world.clock.now_s += 3600
    await world.load()
    assert world.origin.asked[1] == Asked(URL, ETAG, "Sat, 01 Aug 2026 00:00:00 GMT")


async def test_not_modified_makes_it_fresh_again_without_a_write() -> None:
    world = World(Page(etag=ETAG))
    await world.fill()
    world.clock.now_s += 3600
    confirmed = await world.load()
    assert (confirmed.cached, confirmed.stale) == (True, False)
    world.clock.now_s += 3599
    await world.load()
    assert len(world.origin.asked) == 2
    world.clock.now_s += 1
    await world.load()
    assert len(world.origin.asked) == 3
    assert world.store.puts == [KEY]


async def test_not_modified_may_change_how_long_it_is_fresh() -> None:
    world = World(Page(etag=ETAG, max_age_s=604800))
    await world.fill()
    world.clock.now_s += 604800
    world.origin.pages[URL] = Page(etag=ETAG, max_age_s=90)
    await world.load()
    world.clock.now_s += 89
    await world.load()
    assert len(world.origin.asked) == 2
    world.clock.now_s += 1
    await world.load()
    assert len(world.origin.asked) == 3


async def test_a_newer_copy_of_another_process_is_used() -> None:
    world = World(Page(etag=ETAG))
    await world.fill()
    world.clock.now_s += 3600
    await world.load()
    world.clock.now_s += 3000
    kept = world.store.objects[KEY]
    fetched_at = {"fetched-at": str(int(world.clock.now_s))}
    world.store.objects[KEY] = Kept(kept.body, kept.content_type, {**kept.metadata, **fetched_at})
    world.clock.now_s += 3000
    assert (await world.load()).cached
    assert len(world.origin.asked) == 2


async def test_a_changed_source_replaces_the_stale_copy() -> None:
    world = World(Page(etag=ETAG))
    await world.fill()
    world.clock.now_s += 3600
    newer = picture("red")
    world.origin.pages[URL] = Page(newer, etag='"v2"')
    source = await world.load()
    await until(lambda: world.store.objects[KEY].body == newer)
    assert (source.cached, source.image.getpixel((0, 0))) == (False, (255, 0, 0))
    assert world.store.objects[KEY].metadata["etag"] == '"v2"'
    assert world.store.objects[KEY].metadata["fetched-at"] == "1003600"


@pytest.mark.parametrize(
    ("said", "kept_s"),
    [(None, 3600), (0, 60), (59, 60), (61, 61), (604800, 604800), (10**9, 604800)],
)
async def test_the_freshness_of_the_origin_is_kept_within_bounds(
    said: int | None, kept_s: int
) -> None:
    world = World(Page(max_age_s=said))
    await world.fill()
    assert world.store.objects[KEY].metadata["fresh-seconds"] == str(kept_s)


async def test_a_copy_that_replaces_one_is_fresh_as_long_as_the_first() -> None:
    world = World(Page(max_age_s=0))
    await world.fill()
    world.clock.now_s += 61
    await world.fill()
    assert (await world.load()).cached
    assert len(world.origin.asked) == 2


async def test_without_freshness_of_the_origin_the_setting_holds() -> None:
    world = World(ttl_s=7200)
    await world.fill()
    assert world.store.objects[KEY].metadata["fresh-seconds"] == "7200"


def data_url(body: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(body).decode()}"


async def test_a_data_url_is_decoded_and_neither_fetched_nor_cached() -> None:
    world = World()
    source = await world.load(data_url(PNG))
    assert source.id == hashlib.sha256(PNG).hexdigest()
    assert (source.cached, source.stale, source.fetch_ms) == (False, False, 0.0)
    assert (source.width_px, source.size_bytes) == (64, len(PNG))
    assert (world.origin.asked, world.store.gets, world.store.puts) == ([], [], [])


async def test_a_malformed_data_url_is_a_wrong_field() -> None:
    error = await World().refused(InvalidRequest, "data:image/png;base64,*")
    assert list(error.details["fields"]) == ["image_url"]


async def test_a_data_url_over_the_limit_is_refused_before_it_is_decoded() -> None:
    world = World(max_bytes=len(PNG) - 1)
    await world.refused(SourceTooLarge, data_url(PNG))
    assert world.decoder.decodes == 0
    world = World(max_bytes=len(PNG))
    await world.load(data_url(PNG))


async def test_a_data_url_without_a_picture_is_refused() -> None:
    await World().refused(UnsupportedImage, "data:,hello")


async def test_a_cached_object_over_the_limit_is_a_cache_failure() -> None:
    world = World()
    await world.fill()
    small = World(max_bytes=len(PNG) - 1)
    small.store.objects = world.store.objects
    small.origin.fault = SourceTimedOut("late")
    await small.refused(CacheReadFailed)


async def test_the_store_gets_the_time_limit_of_a_source() -> None:
    world = World(timeout_s=7.5)
    await world.fill()
    assert world.store.put_timeouts_s == [7.5]


async def test_the_wait_for_a_decoder_is_not_the_origins_time() -> None:
    world = World(timeout_s=0.5)
    await world.load()
    assert world.decoder.timeout_s == 60
