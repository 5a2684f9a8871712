"""Bitmaps of run lengths, three pixels wide and two high, from the bottom up."""

import struct

import pytest
from PIL import Image

from retouch import errors
from retouch.images.decode import Limits, decode

RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)
COLOURS = (RED, GREEN)
RLE8, RLE4 = 1, 2
END_OF_ROW, END, MOVE = b"\0\0", b"\0\1", b"\0\2"


def decode_runs(
    runs: bytes, *, kind: int = RLE8, colours: tuple[tuple[int, int, int], ...] = COLOURS
) -> list[tuple[int, ...]]:
    """Return the six pixels, the lower row first."""
    palette = b"".join(bytes((*reversed(colour), 0)) for colour in colours)
    bits, start = 8 if kind == RLE8 else 4, 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, 3, 2, 1, bits, kind, len(runs), 0, 0, len(colours), 0)
    file = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + palette + runs
    image = decode(file, Limits()).image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return list(image.get_flattened_data())


@pytest.mark.parametrize(
    ("kind", "lower", "upper"),
    [
        (RLE8, b"\3\0", b"\3\1"),
        (RLE8, b"\0\3\0\0\0\0", b"\0\3\1\1\1\0"),
        (RLE4, b"\3\0", b"\3\x11"),
        (RLE4, b"\0\3\0\0", b"\0\3\x11\x10"),
        (RLE4, b"\4\0", b"\4\x11"),
        (RLE4, b"\0\4\0\0", b"\0\4\x11\x11"),
    ],
    ids=[
        "runs",
        "pixels",
        "runs of 4 bits",
        "pixels of 4 bits",
        "a run too long",
        "a pixel too many",
    ],
)
def test_each_row_of_runs_stays_in_its_place(kind: int, lower: bytes, upper: bytes) -> None:
    runs = lower + END_OF_ROW + upper + END_OF_ROW + END
    assert decode_runs(runs, kind=kind) == [RED] * 3 + [GREEN] * 3


def test_pixels_that_the_runs_leave_out_are_black() -> None:
    assert decode_runs(b"\1\1" + MOVE + b"\1\1" + b"\1\1" + END) == [GREEN, *[BLACK] * 4, GREEN]


@pytest.mark.parametrize(
    "colours", [((0, 0, 0), (255, 255, 255)), ((0, 0, 0), (1, 1, 1), (2, 2, 2))]
)
def test_runs_of_gray_show_their_own_gray(colours: tuple[tuple[int, int, int], ...]) -> None:
    runs = b"\3\0" + END_OF_ROW + b"\3\1"
    assert decode_runs(runs, colours=colours) == [colours[0]] * 3 + [colours[1]] * 3


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_runs_that_end_too_early_are_refused(kept: int) -> None:
    with pytest.raises(errors.BrokenImage):
        decode_runs((b"\3\0" + END_OF_ROW + b"\2\1")[:kept])
