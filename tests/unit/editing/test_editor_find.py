import base64
import hashlib
from typing import Any

import pytest
from support.fakes import PNG, REQUEST, URL, House, Kept

from retouch.errors import InvalidRequest, StoreUnavailable
from retouch.schema import EditRequest, EditResult


async def find(house: House, *, job_id: str = "job-1", **changes: Any) -> EditResult | None:
    request = EditRequest.model_validate(REQUEST.model_dump(exclude_unset=True) | changes)
    return await house.find(request, job_id=job_id, request_id="r-2")


async def edited(house: House) -> EditResult:
    return await house.editor.run(REQUEST, job_id="job-1", request_id="r-1")


async def test_a_job_done_before_is_answered_from_its_result_by_one_get() -> None:
    house = House()
    first = await edited(house)
    gets, edits = len(house.store.gets), len(house.engine.edits)
    again = await find(house)
    assert again is not None
    assert again.result.object_key == first.result.object_key
    assert again.result.content_type == "image/png"
    assert again.result.presigned_url == first.result.presigned_url
    meta, was = again.result.meta, first.result.meta
    assert (meta.request_id, meta.job_id, meta.seed) == ("r-2", "job-1", was.seed)
    assert meta.source == was.source
    assert meta.notes[:-1] == was.notes
    assert house.store.gets[gets:] == [first.result.object_key]
    assert (len(house.engine.edits), len(house.origin.asked)) == (edits, 1)


@pytest.mark.parametrize(
    "changes",
    [{"job_id": "job-2"}, {"output_format": "webp"}, {"image_url": URL + "&other"}],
)
async def test_another_job_format_or_image_is_not_found(changes: dict[str, Any]) -> None:
    house = House()
    await edited(house)
    assert await find(house, **changes) is None


@pytest.mark.parametrize("damage", [{"body": b"cut"}, {"metadata": {}}])
async def test_a_result_that_is_not_whole_counts_as_none(damage: dict[str, Any]) -> None:
    house = House()
    key = (await edited(house)).result.object_key
    kept = house.store.objects[key]
    whole = {"body": kept.body, "content_type": "image/png", "metadata": kept.metadata}
    house.store.objects[key] = Kept(**(whole | damage))
    assert await find(house) is None


async def test_a_data_url_is_looked_for_under_the_hash_of_its_bytes() -> None:
    house = House()
    assert await find(house, image_url=f"data:;base64,{base64.b64encode(PNG).decode()}") is None
    assert house.store.gets == [f"p/results/{hashlib.sha256(PNG).hexdigest()}/job-1-0.png"]


async def test_a_data_url_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        await find(House(), image_url="data:;base64,*")


async def test_a_store_that_cannot_be_asked_is_told() -> None:
    house = House()
    house.store.get_fault = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await find(house)
