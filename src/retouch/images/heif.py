"""Open the formats of the High Efficiency Image File format: AVIF by libavif, HEIF by libheif."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from pi_heif import options
from pi_heif.as_plugin import HeifImageFile
from pi_heif.heif import open_heif as read_heif
from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile

# Browsers show BT.709 and its like as sRGB in AVIF, but by BT.1886 in PNG (Chromium 151).
_VIDEO_TRANSFERS, _SRGB = (1, 6, 14, 15), 13
_CODINGS: Final = {
    b"vvc1": "VVC",
    b"j2k1": "JPEG 2000",
    b"unci": "uncompressed",
    b"avc1": "AVC",
    b"jpeg": "JPEG",
    b"av01": "AV1",
}
_HEADER: Final = struct.Struct(">I4s")
_FULL_BOX_BYTES: Final = 4  # version and flags, before the content of some boxes

options.DECODE_THREADS = 1
options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False


def open_avif(body: bytes) -> ImageFile:
    """Read the header, and put `cicp` into `info`.

    Raises:
        Exception: of any type, from Pillow, where the file is damaged.
    """
    body = _tell_associations_apart(body)
    source = AvifImageFile(BytesIO(body))
    with suppress(Exception):  # libheif is stricter than libavif, and does not know sequences
        source.info["cicp"] = _get_cicp(read_heif(BytesIO(body)).info)
    return source


def open_heif(body: bytes) -> ImageFile:
    """Read the header, and put `cicp` into `info`.

    Raises:
        Exception: of any type, from libheif, where the file is damaged or holds no HEVC image.
    """
    source: ImageFile = HeifImageFile(BytesIO(body))  # type: ignore[no-untyped-call]
    source.info["cicp"] = _get_cicp(source.info)
    return source


def name_heif_coding(body: bytes) -> str:
    """Name the coding of a HEIF file's images if it is one that libheif, as built here, cannot read."""
    return next((name for code, name in _CODINGS.items() if code in body[:4096]), "")


def _get_cicp(info: Mapping[Any, Any]) -> tuple[int, int] | None:
    nclx = info.get("nclx_profile")
    if not nclx:
        return None
    transfer = nclx["transfer_characteristics"]
    return nclx["color_primaries"], _SRGB if transfer in _VIDEO_TRANSFERS else transfer


def _tell_associations_apart(body: bytes) -> bytes:
    """Number the boxes of property associations in unused bits of their flags.

    The encoder cavif writes one for each item. ISO/IEC 14496-12, 8.11.14.1, allows a second one only with
    another version or other flags. libavif refuses such files for that; browsers and libheif do not.
    """
    if body.count(b"ipma") <= 1:
        return body
    numbered = bytearray(body)
    boxes = _find_boxes(body, (0, len(body)), b"meta", b"iprp", b"ipma")
    for number, (start, _) in enumerate(boxes):
        numbered[start + 2] |= number & 0xFF
    return bytes(numbered)


def _find_boxes(body: bytes, place: tuple[int, int], *path: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of the content of each box on a path of names (ISO/IEC 14496-12, 4.2)."""
    position, end = place
    while position + _HEADER.size <= end:
        size, name = _HEADER.unpack_from(body, position)
        start, position = position + _HEADER.size, min(position + size, end)
        if size < _HEADER.size:  # 64 bits of size, or up to the end: coded data, behind the rest
            return
        if name != path[0]:
            continue
        if path[1:]:
            start += _FULL_BOX_BYTES * (name == b"meta")
            yield from _find_boxes(body, (start, position), *path[1:])
        else:
            yield start, position
