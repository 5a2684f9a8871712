import asyncio
import base64
from dataclasses import replace

import pytest
from support.fakes import PNG, URL, FakeEngine, House, Page, picture

from retouch.editing.steps import EditorSettings
from retouch.errors import (
    DeadlineExceeded,
    InvalidRequest,
    SourceStatusError,
    SourceTooLarge,
    UnsupportedImage,
)
from retouch.schema import EditRequest, EditResult

FIRST, SECOND = "https://pictures.example/1.png", "https://pictures.example/2.png"
JOB = {"job_id": "job-1", "request_id": "r-1"}


def build_house(**changes: object) -> House:
    house = House(settings=EditorSettings(prefix="p/", **changes))  # type: ignore[arg-type]
    house.origin.pages |= {FIRST: Page(PNG), SECOND: Page(picture("red", (48, 96)))}
    house.engine.info = replace(house.engine.info, max_areas_px=(1 << 22,) * 3)
    return house


async def edit(house: House, *urls: str, **fields: object) -> EditResult:
    request = EditRequest.model_validate({"image_urls": [*urls], "prompt": "join", **fields})
    return await house.editor.run(request, **JOB)


async def test_several_images_reach_the_engine_in_order_and_stand_in_meta() -> None:
    house = build_house()
    result = (await edit(house, FIRST, SECOND)).result
    assert [source.height for source in result.meta.sources] == [48, 96]
    assert result.meta.source == result.meta.sources[0]
    assert result.meta.height > result.meta.width
    first = (await edit(house, FIRST, SECOND, size_from="first")).result
    assert first.meta.width >= first.meta.height


async def test_images_are_loaded_side_by_side() -> None:
    house = build_house()
    house.origin.is_open.clear()
    task = asyncio.create_task(edit(house, FIRST, SECOND))
    while house.origin.flying < 2:  # noqa: ASYNC110 - the origin sets no event
        await asyncio.sleep(0.001)
    house.origin.is_open.set()
    await task
    assert len(house.origin.asked) == 2


async def test_one_image_given_twice_is_fetched_once() -> None:
    house = build_house()
    assert len((await edit(house, FIRST, FIRST)).result.meta.sources) == 2
    assert len(house.origin.asked) == 1


async def test_a_failure_says_which_image_and_ends_the_other_loads() -> None:
    house = build_house()
    with pytest.raises(SourceStatusError) as caught:
        await edit(house, FIRST, "https://pictures.example/absent.png")
    assert caught.value.message == "image_urls[1]: not here"
    assert caught.value.details == {"origin_status": 404, "source": "image_urls[1]"}
    with pytest.raises(UnsupportedImage, match=r"^image_urls\[0\]: "):
        await edit(house, "data:,text", FIRST)


async def test_a_malformed_image_is_a_wrong_field() -> None:
    house = build_house()
    with pytest.raises(InvalidRequest) as caught:
        await edit(house, FIRST, "data:;base64,#")
    assert list(caught.value.details["fields"]) == ["image_urls[1]"]
    request = EditRequest(image_urls=[FIRST, "data:;base64,#"], prompt="join")
    with pytest.raises(InvalidRequest) as found:
        await house.find(request, **JOB)
    assert found.value.message == caught.value.message


async def test_a_single_image_keeps_its_own_words() -> None:
    house = House()
    house.origin.pages.clear()
    with pytest.raises(SourceStatusError) as caught:
        await house.editor.run(EditRequest(image_url=URL, prompt="a"), **JOB)
    assert (caught.value.message, caught.value.details) == ("not here", {"origin_status": 404})


async def test_images_may_not_be_too_large_together() -> None:
    house = build_house(max_source_bytes=2 * len(PNG))
    await edit(house, FIRST, FIRST)
    with pytest.raises(SourceTooLarge, match="together"):
        await edit(house, FIRST, FIRST, FIRST)


async def test_all_images_share_one_deadline() -> None:
    house = build_house(job_timeout_s=0.05)
    house.origin.is_open.clear()
    with pytest.raises(DeadlineExceeded):
        await edit(house, FIRST, SECOND)


async def test_a_checkpoint_that_takes_one_image_says_so_before_anything_is_fetched() -> None:
    house = House(engine=FakeEngine())
    with pytest.raises(InvalidRequest) as caught:
        await edit(house, FIRST, SECOND)
    assert caught.value.details["fields"] == {"image_urls": "fake takes 1 image, not 2"}
    assert house.origin.asked == []


async def test_the_largest_result_depends_on_the_number_of_images() -> None:
    house = build_house()
    house.engine.info = replace(house.engine.info, max_areas_px=(1 << 22, 1 << 16))
    with pytest.raises(InvalidRequest, match="at most 65536 from 2 images"):
        await edit(house, FIRST, SECOND, width=512, height=512)
    await edit(house, FIRST, width=512, height=512)


async def test_a_retry_finds_the_result_of_the_same_images_in_the_same_order_only() -> None:
    house = build_house()
    inline = f"data:;base64,{base64.b64encode(PNG).decode()}"
    first = await edit(house, inline, SECOND)
    for urls, is_found in (([inline, SECOND], True), ([SECOND, inline], False), ([inline], False)):
        found = await house.find(EditRequest(image_urls=urls, prompt="join"), **JOB)
        assert (found is not None) is is_found
        if found:
            assert found.result.object_key == first.result.object_key
            assert found.result.meta.sources == first.result.meta.sources
