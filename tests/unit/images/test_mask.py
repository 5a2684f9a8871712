import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.images import samples

from retouch.images import decode
from retouch.images.feather import feather, paste_back
from retouch.images.mask import grow_box, resize_mask, to_mask

LIMITS = decode.Limits()
AREA = (20, 12, 40, 30)
SIZE = (64, 48)


def saved(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def white(mode: str = "L", size: tuple[int, int] = SIZE) -> Image.Image:
    """Black with a white area."""
    image = Image.new("L", size)
    image.paste(255, AREA)
    return image.convert(mode)


def clear(mode: str) -> Image.Image:
    """Opaque white, transparent in the area."""
    image = Image.new(mode, SIZE, "white")
    alpha = Image.new("L", SIZE, 255)
    alpha.paste(0, AREA)
    image.putalpha(alpha)
    return image


def read(body: bytes, limits: decode.Limits = LIMITS) -> Image.Image:
    return decode.decode(body, limits, "mask").image


def sixteen_bits() -> Image.Image:
    values = np.zeros(SIZE[::-1], np.uint16)
    values[12:30, 20:40] = 65535
    return Image.fromarray(values)


MASKS = {
    "gray": saved(white()),
    "bits": saved(white("1")),
    "colour": saved(white("RGB")),
    "palette": saved(white("P")),
    "16 bits": saved(sixteen_bits()),
    "opaque alpha": saved(white("RGBA")),
    "alpha": saved(clear("RGBA")),
    "gray and alpha": saved(clear("LA")),
    "transparent palette": saved(clear("RGBA").quantize(4)),
    "webp": saved(clear("RGBA"), "WEBP", lossless=True),
    "cmyk": saved(white("CMYK"), "TIFF"),
    "turned": saved(white().transpose(Image.Transpose.ROTATE_90), exif=samples.oriented(6)),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_any_kind_selects_its_white_or_else_its_transparent_part(name: str) -> None:
    mask = read(MASKS[name])
    assert (mask.mode, mask.size, mask.getbbox()) == ("L", SIZE, AREA)
    assert sorted(set(mask.tobytes())) == [0, 255]


@pytest.mark.parametrize("at", [(0, 0), (1999, 1499), (777, 1234)])
def test_a_mask_of_one_pixel_is_not_lost_when_it_is_reduced(at: tuple[int, int]) -> None:
    mask = Image.new("L", (2000, 1500))
    mask.putpixel(at, 255)
    reduced = read(saved(mask), decode.Limits(working_pixels=30_000))
    left, top, right, bottom = reduced.getbbox() or (0, 0, 0, 0)
    assert (reduced.size, right - left, bottom - top) == ((200, 150), 1, 1)
    assert (left, top) == (at[0] // 10, at[1] // 10)
    assert resize_mask(mask, (4000, 3000)).getbbox() == (
        *(2 * x for x in at),
        *(2 * x + 2 for x in at),
    )


@pytest.mark.parametrize("radius_px", [0, 1, 2, 7, 8, 64])
def test_a_feathered_mask_is_whole_inside_and_nothing_beyond_its_radius(radius_px: int) -> None:
    mask = Image.new("L", (300, 200))
    mask.paste(255, (100, 80, 120, 110))
    ramp = np.asarray(feather(mask, radius_px))
    assert (ramp[80:110, 100:120] == 255).all()
    reach = np.zeros_like(ramp, dtype=bool)
    reach[max(80 - radius_px, 0) : 110 + radius_px, max(100 - radius_px, 0) : 120 + radius_px] = (
        True
    )
    assert not ramp[~reach].any()
    row = ramp[95, 120 : 120 + radius_px].astype(int)
    assert (np.diff(row) <= 0).all()
    assert radius_px < 2 or (row > 0).any()


def test_a_mask_at_the_edge_of_the_image_stays_whole_there() -> None:
    mask = Image.new("L", (60, 40))
    mask.paste(255, (0, 0, 10, 40))
    ramp = np.asarray(feather(mask, 8))
    assert (ramp[:, :10] == 255).all()
    assert (ramp[:, 18:] == 0).all()


@pytest.mark.parametrize("case", range(200))
def test_pixels_outside_the_feather_are_those_of_the_source(case: int) -> None:
    rng = np.random.default_rng(case)
    width, height = (int(side) for side in rng.integers(24, 100, 2))
    source = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    mask = Image.new("L", source.size)
    left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
    mask.paste(255, (left, top, left + int(rng.integers(1, 60)), top + int(rng.integers(1, 60))))
    if case % 3 == 0:  # as a file with alpha, turned
        turned = Image.new("LA", (height, width), "white")
        cut = mask.transpose(Image.Transpose.ROTATE_90).point(lambda value: 255 - value)
        turned.putalpha(cut)
        mask = read(saved(turned, exif=samples.oriented(6)))
    painted = mask.getbbox()
    assert painted
    radius_px, padding_px = int(rng.integers(0, 20)), int(rng.integers(0, 40))
    alpha = feather(mask, radius_px)
    box = (0, 0, width, height)
    if case % 2:
        box = grow_box(painted, by_px=max(radius_px, padding_px), within_px=source.size)
    edited = Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
    result = np.asarray(paste_back(edited, source, alpha, box))
    outside = np.asarray(alpha) == 0
    assert (result[outside] == np.asarray(source)[outside]).all()
    ys, xs = np.nonzero(np.asarray(mask))
    far = np.ones_like(outside)
    far[
        max(ys.min() - radius_px, 0) : ys.max() + radius_px + 1,
        max(xs.min() - radius_px, 0) : xs.max() + radius_px + 1,
    ] = False
    assert outside[far].all()
    whole = np.asarray(edited.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS))
    inside = np.asarray(mask.crop(box)) == 255
    assert (result[box[1] : box[3], box[0] : box[2]][inside] == whole[inside]).all()


@pytest.mark.parametrize(
    ("box", "within_px", "grown"),
    [
        ((0, 0, 1, 1), (500, 400), (0, 0, 64, 64)),
        ((499, 399, 500, 400), (500, 400), (436, 336, 500, 400)),
        ((10, 10, 490, 12), (500, 400), (2, 0, 498, 124)),
        ((10, 10, 20, 20), (40, 30), (2, 2, 28, 28)),
    ],
)
def test_a_box_is_neither_tiny_nor_narrow_and_within_the_image(
    box: tuple[int, int, int, int], within_px: tuple[int, int], grown: tuple[int, int, int, int]
) -> None:
    found = grow_box(box, by_px=8, within_px=within_px)
    assert found[0] <= box[0]
    assert found[3] >= box[3]
    assert found[2] <= within_px[0]
    assert found[3] <= within_px[1]
    if within_px[0] >= 64 and within_px[1] >= 64:
        assert found == grown


def test_half_is_the_threshold() -> None:
    steps = Image.frombytes("L", (4, 1), bytes([0, 127, 128, 255]))
    assert to_mask(steps).tobytes() == bytes([0, 0, 255, 255])
    clear_ones = Image.merge("LA", (Image.new("L", (4, 1), 255), steps))
    assert to_mask(clear_ones).tobytes() == bytes([255, 255, 0, 0])
