"""AVIF files that are not to the letter, and that browsers show."""

import struct

import pytest
from PIL import Image
from support.images.samples import WHITE, colour_of, near, saved

TRANSPARENT_RED = (255, 0, 0, 0)
RED_BROWN = (200, 60, 60)


def divide_associations(body: bytes) -> bytes:
    """Give each of an AVIF's two items a box of property associations of its own."""
    at = body.index(b"ipma") - 4
    size, _, head, count = struct.unpack_from(">I4s4sI", body, at)
    assert count == 2
    first = at + 16 + 3 + body[at + 16 + 2]  # an identity, a count, a byte for each property
    entries = body[at + 16 : first], body[first : at + size]
    boxes = [struct.pack(">I4s4sI", 16 + len(each), b"ipma", head, 1) + each for each in entries]
    divided = bytearray(body[:at] + b"".join(boxes) + body[at + size :])
    for name in (b"meta", b"iprp"):
        enlarge(divided, divided.index(name) - 4)
    items = divided.index(b"iloc") + 12
    for item in range(2):
        enlarge(divided, items + 14 * item + 6)
    return bytes(divided)


def enlarge(body: bytearray, at: int) -> None:
    """Add to a number of 32 bits what a second box takes before the coded data."""
    struct.pack_into(">I", body, at, struct.unpack_from(">I", body, at)[0] + 16)


def test_an_avif_may_have_a_box_of_associations_for_each_item() -> None:
    body = saved(Image.new("RGBA", (16, 16), TRANSPARENT_RED), "AVIF")
    assert near(colour_of(divide_associations(body)), WHITE, by=3)


@pytest.mark.parametrize("animated", [False, True])
@pytest.mark.parametrize("value_range", ["full", "limited"])
def test_an_avif_is_shown_by_the_range_it_names(value_range: str, animated: bool) -> None:
    """Chromium 156 takes each animation for one of limited range."""
    frame, other = (Image.new("RGB", (16, 16), colour) for colour in (RED_BROWN, WHITE))
    more = {"save_all": True, "append_images": [other]} if animated else {}
    body = saved(frame, "AVIF", range=value_range, **more)
    assert near(colour_of(body), RED_BROWN, by=3)
