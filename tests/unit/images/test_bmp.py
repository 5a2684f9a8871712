"""Bitmaps whose header has more than Pillow reads."""

import struct

import pytest
from PIL import ImageCms

from retouch import errors
from retouch.images.decode import Limits, decode

_ARGB = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
_PLAIN, _BY_MASKS, _BY_ALPHA_MASKS = 0, 3, 6


def build_bmp(
    pixel: bytes,
    *,
    compression: int = _BY_MASKS,
    masks: tuple[int, ...] = (0, 0, 0, 0),
    profile: bytes = b"",
) -> bytes:
    """Build a bitmap of 4 x 4 equal pixels with a header of version 5."""
    pixels = pixel * 4
    pixels += bytes(-len(pixels) % 4)
    start, rows = 14 + 124, 4 * len(pixels)
    space, at = (b"DEBM", 124 + rows) if profile else (b"BGRs", 0)
    header = struct.pack(
        "<IiiHHIIiiII", 124, 4, 4, 1, 8 * len(pixel), compression, rows, 0, 0, 0, 0
    )
    header += (
        struct.pack("<4I", *masks) + space + bytes(48) + struct.pack("<4I", 4, at, len(profile), 0)
    )
    body = header + pixels * 4 + profile
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, start) + body


@pytest.mark.parametrize("compression", [_PLAIN, _BY_MASKS])
def test_an_alpha_channel_of_8_bits_is_put_on_white(compression: int) -> None:
    body = build_bmp(b"\x00\x00\xff\x80", compression=compression, masks=_ARGB)
    red, green, blue = decode(body, Limits()).image.getpixel((0, 0))
    assert (red, green, blue) == pytest.approx((255, 127, 127), abs=1)


@pytest.mark.parametrize(
    ("pixel", "masks", "wanted"),
    [
        (b"\x00\x7c", (0x7C00, 0x3E0, 0x1F, 0x8000), (255, 255, 255)),
        (b"\x00\xfc", (0x7C00, 0x3E0, 0x1F, 0x8000), (255, 0, 0)),
        (b"\xf0\x88", (0xF00, 0xF0, 0xF, 0xF000), (191, 255, 119)),
        (b"\xf0\x08", (0xF00, 0xF0, 0xF, 0), (136, 255, 0)),
        (b"\x0a\x20", (0x38, 0xFFC0, 0x7, 0), (36, 32, 73)),
        (b"\x00\x00\xf8\xff", (0xFFE00000, 0x1FFC00, 0x3FF, 0), (255, 192, 0)),
        (b"\xff\x00\x00\x80", (0xFF000000, 0xFF0, 0xFF0000, 0), (128, 15, 0)),
    ],
)
def test_each_channel_is_read_where_its_mask_says(
    pixel: bytes, masks: tuple[int, int, int, int], wanted: tuple[int, int, int]
) -> None:
    found = decode(build_bmp(pixel, masks=masks), Limits()).image.getpixel((0, 0))
    assert found == pytest.approx(wanted, abs=1)


def test_a_mask_of_alpha_may_stand_behind_a_short_header() -> None:
    pixels = struct.pack("<4I", *_ARGB) + b"\x00\x00\xff\x80" * 16
    header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 32, _BY_ALPHA_MASKS, 64, 0, 0, 0, 0)
    body = b"BM" + struct.pack("<IHHI", 70 + 64, 0, 0, 70) + header + pixels
    assert decode(body, Limits()).image.getpixel((0, 0)) == pytest.approx((255, 127, 127), abs=1)


def test_the_pixels_behind_the_oldest_header_are_not_read_as_masks() -> None:
    header = struct.pack("<IHHHH", 12, 4, 4, 1, 24)
    pixels = b"\x00\x00\x10\x00\x03\x00\x00\x00\x00\x00\xff\x00" * 4
    body = b"BM" + struct.pack("<IHHI", 26 + 48, 0, 0, 26) + header + pixels
    image = decode(body, Limits()).image
    assert [image.getpixel((x, 0)) for x in (0, 1, 3)] == [(16, 0, 0), (0, 3, 0), (0, 255, 0)]


def test_an_embedded_profile_is_applied() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmp1").replace(b"bXYZ", b"rXYZ").replace(b"tmp1", b"bXYZ")
    image = decode(build_bmp(b"\x00\x00\xff", compression=_PLAIN, profile=swapped), Limits()).image
    red, _, blue = image.getpixel((0, 0))
    assert (red, blue) == pytest.approx((0, 255), abs=2)


@pytest.mark.parametrize("length", [14, 20, 60, 130])
def test_a_header_that_is_cut_short_is_a_broken_image(length: int) -> None:
    with pytest.raises(errors.BrokenImage):
        decode(build_bmp(b"\x00\x00\xff\x80", masks=_ARGB)[:length], Limits())
