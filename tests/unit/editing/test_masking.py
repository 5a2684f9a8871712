import base64
import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.fakes import URL, House, Page

from retouch.errors import BadInput, MaskEmpty, MaskSizeMismatch, UnsupportedImage
from retouch.schema import EditRequest, Result
from retouch.storage.port import StoredObject

JOB = {"job_id": "job-1", "request_id": "r-1"}
SIZE = (160, 120)
AREA = (40, 30, 80, 60)


def to_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
SOURCE = to_url(Image.fromarray(PIXELS))


def mask_of(area: tuple[int, int, int, int] = AREA, size: tuple[int, int] = SIZE) -> str:
    image = Image.new("L", size)
    image.paste(255, area)
    return to_url(image)


async def edit(
    house: House, **fields: object
) -> tuple[Result, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    body: Mapping[str, object] = {"image_url": SOURCE, "prompt": "a", **fields}
    result = (await house.editor.run(EditRequest.model_validate(body), **JOB)).result
    stored: StoredObject | None = house.store.get(result.object_key, max_bytes=1 << 30, timeout_s=1)
    assert stored
    return result, np.asarray(Image.open(io.BytesIO(stored.body)))


async def test_outside_the_mask_the_result_has_the_sources_own_pixels() -> None:
    house = House()
    result, pixels = await edit(house, mask_url=mask_of(), mask_feather=4, width=160, height=128)
    base = np.asarray(Image.fromarray(PIXELS).resize((160, 128), Image.Resampling.LANCZOS))
    outside = np.ones(base.shape[:2], bool)
    outside[27:69, 36:84] = False
    assert (pixels[outside] == base[outside]).all()
    assert (pixels[32:64, 40:80] != base[32:64, 40:80]).any(axis=-1).mean() > 0.9
    assert result.meta.geometry.box == (0, 0, *SIZE)
    (mask,) = house.engine.masks
    assert mask
    assert mask.getbbox() == AREA


async def test_with_padding_the_box_is_edited_at_full_size_and_put_back() -> None:
    house = House()
    result, pixels = await edit(house, mask_url=mask_of(), mask_feather=0, mask_padding=10)
    assert (result.meta.width, result.meta.height) == SIZE
    assert result.meta.geometry.source == SIZE
    assert result.meta.geometry.box == (28, 13, 92, 77)
    assert result.meta.geometry.working == (64, 64)
    (params,) = house.engine.edits
    assert (params.width_px, params.height_px) == (64, 64)
    outside = np.ones(SIZE[::-1], bool)
    outside[30:60, 40:80] = False
    assert (pixels[outside] == PIXELS[outside]).all()
    assert (pixels[30:60, 40:80] != PIXELS[30:60, 40:80]).any(axis=-1).mean() > 0.9


async def test_a_full_mask_is_as_none() -> None:
    house = House()
    await edit(house, mask_url=mask_of((0, 0, *SIZE)))
    assert house.engine.masks == [None]


async def test_with_padding_the_result_of_a_full_mask_has_the_images_size_too() -> None:
    result, pixels = await edit(House(), mask_url=mask_of((0, 0, *SIZE)), mask_padding=10)
    assert (result.meta.width, result.meta.height) == SIZE == pixels.shape[1::-1]


@pytest.mark.parametrize(
    ("mask", "kind", "text"),
    [
        (mask_of((0, 0, 0, 0)), MaskEmpty, "white"),
        (mask_of(size=(160, 122)), MaskSizeMismatch, "160 x 122 pixels, the image 160 x 120"),
        ("data:,text", UnsupportedImage, "mask_url: "),
    ],
)
async def test_a_mask_that_cannot_be_used_is_refused(
    mask: str, kind: type[BadInput], text: str
) -> None:
    house = House()
    with pytest.raises(kind, match=text):
        await edit(house, mask_url=mask)
    assert house.engine.edits == []


async def test_a_mask_of_almost_the_same_shape_is_stretched() -> None:
    house = House()
    await edit(house, mask_url=mask_of((40, 30, 80, 60), size=(160, 121)))
    (mask,) = house.engine.masks
    assert mask
    assert mask.size == SIZE


async def test_a_mask_is_for_the_first_image_whose_shape_the_result_has() -> None:
    house = House()
    house.engine.info = replace(house.engine.info, max_areas_px=(1 << 22,) * 3)
    tall = to_url(Image.new("RGB", (60, 240)))
    urls = {"image_url": None, "image_urls": [SOURCE, tall]}
    result, _ = await edit(house, mask_url=mask_of(), **urls)
    assert result.meta.geometry.source == SIZE
    assert len(result.meta.sources) == 2
    lower, _ = await edit(house, strength=0.5, num_inference_steps=4, **urls)
    assert lower.meta.geometry.source == SIZE
    assert (lower.meta.strength, lower.meta.num_inference_steps) == (0.5, 4)


async def test_the_mask_is_part_of_the_key_and_of_what_is_reused() -> None:
    house = House()
    keys = set()
    for mask in (None, mask_of(), mask_of((40, 30, 90, 60))):
        result, _ = await edit(house, mask_url=mask, seed=5)
        keys.add(result.object_key)
        request = EditRequest(image_url=SOURCE, mask_url=mask, prompt="a", seed=5)
        found = await house.find(request, **JOB)
        assert found
        assert found.result.object_key == result.object_key
    assert len(keys) == len(house.engine.edits) == 3
    assert (await edit(house, mask_url=mask_of(), seed=5))[0].meta.reused


async def test_one_url_may_be_the_image_and_the_mask() -> None:
    house = House()
    gray = Image.new("L", SIZE)
    gray.paste(255, AREA)
    buffer = io.BytesIO()
    gray.save(buffer, "PNG")
    house.origin.pages[URL] = Page(buffer.getvalue())
    await edit(house, image_url=URL, mask_url=URL)
    await edit(house, image_url=URL, mask_url=URL, cache="no-store")
    assert [mask and mask.getbbox() for mask in house.engine.masks] == [AREA, AREA]


async def test_a_feather_without_a_mask_is_noted() -> None:
    result, _ = await edit(House(), mask_feather=3)
    assert "there is no mask: mask_feather is ignored" in result.meta.notes
