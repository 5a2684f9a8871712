"""Cut off what lies behind the end of an image file: it is decoded by nobody, and would be stored."""

import re

# Markers that are neither stuffing (00) nor restarts (D0-D7) of the entropy-coded data (T.81, B.1.1).
# Without a + for fill bytes: the search would take quadratic time.
_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_EOI, _WITHOUT_LENGTH = 0xD9, {0x01, 0xD8}
_MAX_PARTS = 20_000
"""Segments or chunks: an honest file of the largest size has some thousands."""


def trim(body: bytes) -> bytes:
    r"""Return a JPEG, PNG or WebP file without what is behind its end, any other file as it is.

    >>> trim(b"RIFF\x04\x00\x00\x00WEBP, and a film")
    b'RIFF\x04\x00\x00\x00WEBP'
    """
    if body.startswith(b"\xff\xd8"):
        return body[: _jpeg_end(body)]
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return body[: _png_end(body)]
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        size = int.from_bytes(body[4:8], "little")
        return body[: 8 + size + size % 2]
    return body


def _jpeg_end(body: bytes) -> int:
    at = 2
    for _ in range(_MAX_PARTS):
        found = _JPEG_MARKER.search(body, at)
        if not found:
            break
        at, marker = found.end(), found[1][0]
        if marker == _EOI:
            return at
        if marker not in _WITHOUT_LENGTH:
            at += int.from_bytes(body[at : at + 2])
    return len(body)


def _png_end(body: bytes) -> int:
    at = 8
    for _ in range(_MAX_PARTS):
        length, kind = int.from_bytes(body[at : at + 4]), body[at + 4 : at + 8]
        at += 12 + length
        if kind == b"IEND":
            return at
        if at >= len(body):
            break
    return len(body)
