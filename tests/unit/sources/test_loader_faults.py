import logging
from typing import Any

import pytest
from support.fakes import PNG, URL, Asked, Page, settle, until
from support.worlds import KEY, World

from retouch import errors
from retouch.errors import (
    BrokenImage,
    CacheReadFailed,
    EditError,
    SourceConnectFailed,
    SourceStatusError,
    SourceTimedOut,
    SourceTooLarge,
    SourceUnreachable,
    SourceUnresolved,
    StoreDenied,
    StoreUnavailable,
    UnsupportedImage,
)

ETAG = '"v1"'


@pytest.mark.parametrize(
    "fault",
    [
        SourceTimedOut("late"),
        SourceConnectFailed("refused"),
        SourceUnresolved(host="pictures.example"),
    ],
)
async def test_while_the_origin_is_down_a_stale_copy_is_used_with_a_note(fault: EditError) -> None:
    world = World()
    await world.fill()
    world.clock.now_s += 3600
    world.origin.fault = fault
    source = await world.load()
    assert (source.cached, source.stale) == (True, True)
    assert source.notes == ("the origin could not be asked: an older copy was used",)
    assert len(world.store.puts) == 1
    asked = len(world.origin.asked)
    assert (await world.load()).stale  # asked a moment ago: nobody waits for it again
    assert len(world.origin.asked) == asked
    world.origin.fault = None
    world.clock.now_s += 10
    assert not (await world.load()).stale


@pytest.mark.parametrize(
    "fault",
    [
        SourceUnreachable(host="pictures.example", reason="refused"),
        SourceStatusError("gone", details={"origin_status": 410}),
    ],
)
async def test_a_refusal_is_never_answered_with_a_stale_copy(
    fault: EditError,
) -> None:
    world = World()
    await world.fill()
    world.clock.now_s += 3600
    world.origin.fault = fault
    await world.refused(type(fault))


async def test_a_source_that_grew_over_the_limit_is_not_answered_with_a_stale_copy() -> None:
    world = World()
    await world.fill()
    world.clock.now_s += 3600
    world.origin.fault = SourceTooLarge("too large")
    await world.refused(SourceTooLarge)


@pytest.mark.parametrize("damage", [{"body": b"cut"}, {"metadata": {}}])
async def test_a_damaged_copy_is_ignored_and_replaced(
    damage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    world = World(Page(etag=ETAG))
    await world.fill()
    whole = world.store.objects[KEY]
    world.store.objects[KEY] = type(whole)(
        **{"body": whole.body, "content_type": "", "metadata": whole.metadata} | damage
    )
    source = await world.load()
    assert not source.cached
    assert world.origin.asked[1] == Asked(URL)  # without validators: there is nothing to confirm
    await until(lambda: world.store.objects[KEY].body == PNG)
    assert "cache.damaged" in caplog.messages


async def test_a_damaged_copy_is_not_used_while_the_origin_is_down() -> None:
    world = World()
    await world.fill()
    kept = world.store.objects[KEY]
    world.store.objects[KEY] = type(kept)(b"cut", kept.content_type, kept.metadata)
    world.origin.fault = SourceTimedOut("late")
    await world.refused(SourceTimedOut)


async def test_a_cache_that_cannot_be_read_costs_only_a_download(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    await world.fill()
    world.store.get_fault = StoreUnavailable("down", operation="get")
    source = await world.load()
    assert not source.cached
    assert len(world.origin.asked) == 2
    (record,) = [record for record in caplog.records if record.message == "cache.failed"]
    assert record.levelno == logging.WARNING
    assert vars(record)["fields"] == {"code": "store_unavailable", "operation": "get"}


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (SourceTimedOut("it was late"), "source_timed_out"),
        (SourceUnreachable(host="h"), "source_unreachable"),
    ],
)
async def test_when_cache_and_origin_fail_the_error_names_both(fault: EditError, code: str) -> None:
    world = World()
    world.store.get_fault = StoreDenied("denied")
    world.origin.fault = fault
    error = await world.refused(CacheReadFailed)
    assert fault.message in error.message
    assert error.details == {"origin": code}
    assert error.__cause__ is fault


async def test_an_unreadable_cache_does_not_hide_that_the_source_is_too_large() -> None:
    world = World()
    world.store.get_fault = StoreUnavailable("down")
    world.origin.fault = SourceTooLarge("too large")
    await world.refused(SourceTooLarge)


@pytest.mark.parametrize(
    ("fault", "kept_s"),
    [
        (SourceTimedOut("late"), 10),
        (SourceUnreachable(host="h"), 60),
        (SourceStatusError("gone"), 60),
        (SourceTooLarge("too large"), 60),
    ],
)
async def test_a_failure_is_remembered_for_a_while(fault: EditError, kept_s: int) -> None:
    world = World()
    world.origin.fault = fault
    first = await world.refused(type(fault))
    world.origin.fault = None
    world.clock.now_s += kept_s - 0.01
    again, third = await world.refused(type(fault)), await world.refused(type(fault))
    assert first is not again is not third  # one shared by all would gather all their traces
    assert (again.message, again.details) == (first.message, first.details)
    assert len(world.origin.asked) == 1
    assert len(world.store.gets) == 1
    world.clock.now_s += 0.01
    await world.load()
    assert len(world.origin.asked) == 2


async def test_a_failure_of_one_url_does_not_affect_another() -> None:
    world = World()
    other = URL + "&other"
    await world.refused(SourceStatusError, other)
    assert (await world.load()).size_bytes == len(PNG)


async def test_a_fault_of_the_service_is_not_remembered_against_the_url() -> None:
    world = World()
    world.decoder.fault = errors.Overloaded("busy", details={"retry_after": 1})
    await world.refused(errors.Overloaded)
    world.decoder.fault = None
    await world.load()
    assert len(world.origin.asked) == 2


async def test_a_cache_read_failure_is_not_remembered_against_the_url() -> None:
    world = World()
    world.store.get_fault, world.origin.fault = StoreUnavailable("down"), SourceTimedOut("late")
    await world.refused(CacheReadFailed)
    world.store.get_fault = world.origin.fault = None
    await world.load()


async def test_a_source_that_must_not_be_stored_is_not_stored() -> None:
    world = World(Page(storable=False))
    await world.load()
    await world.load()
    await settle()
    assert world.store.puts == []
    assert len(world.origin.asked) == 2


async def test_an_undecodable_source_is_neither_stored_nor_fetched_again() -> None:
    world = World(Page(b"<html>not a picture</html>"))
    await world.refused(UnsupportedImage)
    await world.refused(UnsupportedImage)
    await settle()
    assert world.store.puts == []
    assert len(world.origin.asked) == 1
    assert world.decoder.decodes == 1


async def test_a_cached_copy_is_decoded_again_on_every_use() -> None:
    world = World()
    await world.fill()
    world.decoder.fault = BrokenImage("new rules")
    await world.refused(BrokenImage)
