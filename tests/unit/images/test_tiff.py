import struct
from io import BytesIO

import pytest
from PIL import Image
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import SUBIFD, ImageFileDirectory_v2
from support.images import samples
from support.images.samples import colour_of, near

from retouch.errors import UnsupportedImage


@pytest.mark.parametrize(
    "tags",
    [
        {Base.NewSubfileType: 1, SUBIFD: 8},  # NEF and ARW
        {Base.NewSubfileType: 0, Base.DNGVersion: b"\1\4\0\0"},
    ],
)
def test_the_thumbnail_of_a_raw_picture_is_not_taken_for_it(tags: dict[int, int | bytes]) -> None:
    directory = ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    file = BytesIO()
    Image.new("RGB", (16, 12)).save(file, "TIFF", tiffinfo=directory)
    with pytest.raises(UnsupportedImage, match="a camera's raw picture"):
        colour_of(file.getvalue())


def test_a_tiff_with_reduced_copies_of_itself_is_read() -> None:
    directory = ImageFileDirectory_v2()
    directory[SUBIFD] = 8
    file = BytesIO()
    Image.new("RGB", (16, 12), (1, 2, 3)).save(file, "TIFF", tiffinfo=directory)
    assert colour_of(file.getvalue()) == (1, 2, 3)


@pytest.mark.parametrize("order", ["<", ">"])
def test_gray_of_16_bits_is_scaled_in_either_byte_order(order: str) -> None:
    body = samples.tiff(
        (4, 1), struct.pack(f"{order}4H", 0, 16384, 32768, 65535), bits=16, order=order
    )
    seen = [colour_of(body, (x, 0))[0] for x in range(4)]
    assert near(seen, (0, 64, 128, 255), by=1)


def test_compressed_gray_of_16_bits_is_scaled() -> None:
    body = samples.tiff((2, 1), struct.pack("<2H", 0, 65535), bits=16, deflate=True)
    assert [colour_of(body, (x, 0))[0] for x in range(2)] == [0, 255]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_gray_of_up_to_8_bits_keeps_its_white(bits: int, white_is_zero: bool) -> None:
    white = 0 if white_is_zero else 255
    body = samples.tiff((1, 1), bytes([white]), bits=bits, photometric=0 if white_is_zero else 1)
    assert colour_of(body) == (255, 255, 255)


def test_separate_planes_of_8_bit_rgb_are_read() -> None:
    planes = [bytes([value] * 4) for value in (200, 100, 50)]
    assert colour_of(samples.tiff((2, 2), *planes, bits=8, photometric=2)) == (200, 100, 50)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("bits", "sample_format", "photometric", "planes", "kind"),
    [
        (16, 2, 1, 1, "signed or floating-point samples"),
        (32, 2, 1, 1, "signed or floating-point samples"),
        (32, 3, 1, 1, "signed or floating-point samples"),
        (16, 1, 2, 3, "separate planes other than 8-bit RGB"),
    ],
)
def test_what_pillow_reads_wrongly_is_refused_by_name(
    bits: int,
    sample_format: int,
    photometric: int,
    planes: int,
    kind: str,
    order: str,
    deflate: bool,
) -> None:
    body = samples.tiff(
        (2, 2),
        *[bytes(bits // 2)] * planes,
        bits=bits,
        sample_format=sample_format,
        photometric=photometric,
        order=order,
        deflate=deflate,
    )
    with pytest.raises(UnsupportedImage, match=kind):
        colour_of(body)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (samples.tiff((2, 1), bytes(3), bits=12), "gray samples of 12 bits"),
        (samples.tiff((2, 1), bytes(8), bits=32), "gray samples of 32 bits"),
        (samples.tiff((2, 1), bytes(4), bits=16, photometric=0), "where zero is white"),
        (samples.tiff((2, 1), bytes(4), bits=16, order=">", deflate=True), "compressed big-endian"),
        (
            samples.tiff((2, 2), bytes(4), bytes(4), bits=8, extra_samples=1),
            "separate planes other than 8-bit RGB",
        ),
        (
            samples.tiff((2, 1), bytes(2), bits=8, photometric=3, color_map=[*range(256)] * 3),
            "a color map of 8-bit entries",
        ),
    ],
)
def test_rare_kinds_that_pillow_reads_wrongly_are_refused_by_name(body: bytes, kind: str) -> None:
    with pytest.raises(UnsupportedImage, match=kind):
        colour_of(body)


def test_a_color_map_of_16_bit_entries_is_read() -> None:
    color_map = [257 * value for value in range(256)] * 3
    body = samples.tiff((2, 1), b"\x40\xff", bits=8, photometric=3, color_map=color_map)
    assert [colour_of(body, (x, 0)) for x in range(2)] == [(64, 64, 64), (255, 255, 255)]
