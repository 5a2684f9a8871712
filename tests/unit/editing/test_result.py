import base64
import json

import pytest
from support.fakes import PNG, REQUEST, URL, FakeEngine, House, Kept

from retouch.editing.result import to_object_metadata
from retouch.errors import BadInput, InvalidRequest, StoreUnavailable
from retouch.schema import EditResult

JOB = {"job_id": "job-1", "request_id": "r-1"}
AGAIN = {"job_id": "job-1", "request_id": "r-2"}
FOUND = "an earlier attempt at this job had stored this result"


async def edited(house: House) -> EditResult:
    return await house.editor.run(REQUEST, **JOB)


def change(house: House, **metadata: str) -> None:
    """Change the metadata of the one result there is."""
    (key,) = house.store.results
    kept = house.store.objects[key]
    house.store.objects[key] = Kept(kept.body, kept.content_type, {**kept.metadata, **metadata})


async def test_a_job_without_a_result_finds_none_by_one_get() -> None:
    house = House()
    assert await house.find(REQUEST, **JOB) is None
    assert len(house.store.gets) == 1
    assert house.origin.asked == []


async def test_a_job_finds_the_result_of_its_earlier_attempt() -> None:
    house = House()
    first = (await edited(house)).result
    house.store.gets.clear()
    found = await house.find(REQUEST, **AGAIN)
    assert found is not None
    again = found.result
    assert house.store.gets == [first.object_key]
    assert (again.object_key, again.presigned_url) == (first.object_key, first.presigned_url)
    assert (again.bucket, again.content_type) == (first.bucket, first.content_type)
    own = {"request_id", "timings_ms", "notes"}
    assert again.meta.model_dump(exclude=own) == first.meta.model_dump(exclude=own)
    assert again.meta.request_id == "r-2"
    assert again.meta.notes == [*first.meta.notes, FOUND]
    assert again.meta.timings_ms.denoise == 0
    assert again.meta.timings_ms.total == again.meta.timings_ms.store
    assert len(house.engine.edits) == 1


async def test_another_job_or_source_or_format_finds_nothing() -> None:
    house = House()
    await edited(house)
    assert await house.find(REQUEST, job_id="job-2", request_id="r") is None
    for change in ({"image_url": URL + "2"}, {"output_format": "webp"}):
        assert await house.find(REQUEST.model_copy(update=change), **JOB) is None


async def test_the_result_of_a_data_url_is_found() -> None:
    house = House()
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    request = REQUEST.model_copy(update={"image_url": url})
    first = await house.editor.run(request, **JOB)
    found = await house.find(request, **AGAIN)
    assert found is not None
    assert found.result.object_key == first.result.object_key


@pytest.mark.parametrize(
    "damage",
    [
        {"sha256": "0" * 64},
        {"meta": ""},
        {"meta": "{"},
        {"meta": "[]"},
        {"meta": "null"},
        {"meta": "{}"},
        {"meta": '{"notes": []}'},
        {"meta": '{"notes": 1}'},
        {"meta": "[" * 1400},
    ],
)
async def test_a_result_that_is_not_whole_is_not_found(damage: dict[str, str]) -> None:
    house = House()
    await edited(house)
    change(house, **damage)
    assert await house.find(REQUEST, **JOB) is None


async def test_a_result_without_metadata_is_not_found() -> None:
    house = House()
    await edited(house)
    (key,) = house.store.results
    house.store.objects[key] = Kept(house.store.objects[key].body, "image/png", {})
    assert await house.find(REQUEST, **JOB) is None


async def test_a_store_that_cannot_be_asked_is_an_error() -> None:
    house = House()
    house.store.get_fault = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await house.find(REQUEST, **JOB)


@pytest.mark.parametrize("url", ["data:nothing", "data:;base64,#"])
async def test_a_url_that_is_wrong_is_refused_as_in_an_edit(url: str) -> None:
    house = House()
    request = REQUEST.model_copy(update={"image_url": url})
    with pytest.raises(BadInput) as found:
        await house.find(request, **JOB)
    with pytest.raises(BadInput) as ran:
        await house.editor.run(request, **JOB)
    assert type(found.value) is type(ran.value) is InvalidRequest
    assert found.value.message == ran.value.message


async def test_what_is_kept_is_small_ascii_without_the_prompt() -> None:
    house = House()
    result = (await edited(house)).result
    meta = result.meta.model_copy(update={"model": "modèle", "notes": ["größe"]})
    metadata = to_object_metadata(b"x", meta)
    assert metadata["meta"].isascii()
    assert metadata["meta"].isprintable()
    assert json.loads(metadata["meta"])["notes"] == ["größe"]
    assert sum(map(len, metadata.values())) < 1600
    assert REQUEST.prompt not in str(metadata)


async def test_notes_give_way_where_there_is_no_room() -> None:
    house = House(engine=FakeEngine(notes=("long " * 400,)))
    first = (await edited(house)).result
    assert len(first.meta.notes[-1]) == 2000
    found = await house.find(REQUEST, **AGAIN)
    assert found is not None
    assert found.result.meta.notes == [FOUND]


async def test_a_meta_too_large_without_notes_is_not_kept() -> None:
    house = House()
    result = (await edited(house)).result
    meta = result.meta.model_copy(update={"model": "m" * 2000})
    assert set(to_object_metadata(b"x", meta)) == {"sha256"}
