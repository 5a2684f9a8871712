"""Decode a JPEG scaled down, one with damaged metadata, and one that lacks only its very end."""

import math
import re
from io import BytesIO
from typing import Final

from PIL import ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from retouch.errors import DecodeLimitExceeded

# Markers of a frame and of a scan (T.81, B.2.2 and B.2.3). Coded data never holds them.
_FRAMES: Final = (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2")
_SCAN: Final = re.compile(rb"\xff\xda")
_LAST_COEFFICIENT: Final = 63
_ENOUGH_ROWS: Final = 0.99
# A marker that has a length: not a stuffed zero, TEM, a restart or a fill byte.
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_MAX_SCANS: Final = 100
_OTHER_DATA: Final = b"\x5a\xa5\x3c\xc3" * 64
_COMMENT: Final = 0xFE
_SHORTEST: Final = {0xE0: 14, 0xE2: 14, 0xED: 1 << 16, 0xEE: 12}
"""By marker: bytes from which libjpeg-turbo takes JFIF (`jdmarker.c`), a profile (`jdicc.c`) and Adobe's
segment (`jdmarker.c`). It ignores Photoshop's (APP13)."""


def open_jpeg(body: bytes) -> JpegImageFile:
    """Read the header. Segments of metadata that Pillow cannot read are ignored, as browsers do.

    Raises:
        Exception: of any type, from Pillow, where the file is damaged.
    """
    try:
        return JpegImageFile(BytesIO(body))
    except SyntaxError:
        return JpegImageFile(BytesIO(_hide_metadata(body)))


def _hide_metadata(body: bytes) -> bytes:
    """Make comments of the segments before the first scan that are below `_SHORTEST`."""
    hidden, position = bytearray(body), 2
    while (marker := _MARKER.search(body, position)) and marker[0] != _START_OF_SCAN:
        size = int.from_bytes(body[marker.end() : marker.end() + 2], "big")
        if size - 2 < _SHORTEST.get(marker[0][1], 0):
            hidden[marker.end() - 1] = _COMMENT
        position = marker.end() + size
    return bytes(hidden)


def load_jpeg(source: JpegImageFile, body: bytes, enough_pixels: int) -> JpegImageFile:
    """Decode the pixels, at a half, quarter or eighth where that leaves `enough_pixels`.

    Returns:
        `source`, or the same file opened anew with `end_missing` in its `info`.

    Raises:
        DecodeLimitExceeded: there are more than 100 scans.
        Exception: of any type, from Pillow, where the file is damaged or rows are missing.
    """
    _require_few_scans(body)
    factor = min(1.0, math.sqrt(enough_pixels / (source.width * source.height)))
    target = int(source.width * factor), int(source.height * factor)
    source.draft(None, target)
    try:
        source.load()
    except OSError:
        if not _has_all_scans(body):
            raise
        return _load_without_end(body, target)
    return source


def _require_few_scans(body: bytes) -> None:
    """Refuse a JPEG that repeats its scans; about ten are usual.

    Each is a pass over the image: thousands of empty ones keep a decoder busy up to its limit
    (libjpeg-turbo issue 284, LJT-01-003). Only the first image counts: motion photos append a video.
    """
    if body.count(_START_OF_SCAN) <= _MAX_SCANS:
        return
    scans, position = 0, 2
    while (marker := _MARKER.search(body, position)) and marker[0] != _END_OF_IMAGE:
        position = marker.end()
        scans += marker[0] == _START_OF_SCAN
        if scans > _MAX_SCANS:
            raise DecodeLimitExceeded(f"the JPEG has more than {_MAX_SCANS} scans")
        position += int.from_bytes(body[position : position + 2], "big")


def _has_all_scans(body: bytes) -> bool:
    """Whether each component has a scan that gives its last coefficient in full precision."""
    frame = max(body.rfind(marker) for marker in _FRAMES)
    components: set[int] = set()
    for scan in _SCAN.finditer(body, frame):
        count, *rest = body[scan.end() + 2 : scan.end() + 14].ljust(12, b"\0")
        end, precision = (*rest, 0, 0)[2 * count + 1 : 2 * count + 3]
        if end == _LAST_COEFFICIENT and precision & 15 == 0:
            components.update(rest[0 : 2 * count : 2])
    return len(components) == body[frame + 9]


def _load_without_end(body: bytes, target: tuple[int, int]) -> JpegImageFile:
    """Decode as if the end marker followed, if at most a hundredth of the rows is missing.

    libjpeg shows missing data as gray and does not report it. But it would take other bytes before the
    marker for that data, and show something else from there.
    """
    body = body.rstrip(b"\xff")  # half a marker
    whole, changed = (open_jpeg(body + more + b"\xff\xd9") for more in (b"", _OTHER_DATA))
    for each in (whole, changed):
        each.draft(None, target)
        each.load()
    box = ImageChops.difference(whole, changed).getbbox(alpha_only=False)
    if box and box[1] < _ENOUGH_ROWS * whole.height:
        raise OSError("rows are missing")
    whole.info["end_missing"] = True
    return whole
