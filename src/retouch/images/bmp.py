"""Open a BMP with what Pillow leaves out: its color profile and its alpha channel."""

import struct
from io import BytesIO

from PIL.BmpImagePlugin import BmpImageFile

from retouch.errors import UnsupportedImage
from retouch.images.bmp_runs import RunLengthBmp

# Offsets of fields from the file's start, and lengths of the header after the first 14 bytes.
_BITS_AT, _COMPRESSION_AT, _MASKS_AT, _SPACE_AT, _PROFILE_AT = 28, 30, 54, 70, 126
_V3_BYTES, _V4_BYTES, _V5_BYTES = 56, 108, 124
_FILE_HEADER_BYTES = 14
_PLAIN, _BY_MASKS = 0, 3
_EMBEDDED = b"DEBM"
_ARGB = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def open_bmp(body: bytes) -> BmpImageFile:
    """Read the header; `info` has the embedded profile.

    Raises:
        UnsupportedImage: Pillow would show it without its alpha channel.
        Exception: of any type, from Pillow, where the file is damaged.
    """
    (length,) = struct.unpack_from("<I", body, _FILE_HEADER_BYTES)
    masks = struct.unpack_from("<4I", body, _MASKS_AT) if length >= _V3_BYTES else (0, 0, 0, 0)
    (bits,) = struct.unpack_from("<H", body, _BITS_AT)
    (compression,) = struct.unpack_from("<I", body, _COMPRESSION_AT)
    if (bits, compression, masks) == (32, _PLAIN, _ARGB) and length >= _V4_BYTES:
        # Browsers use the alpha channel also here; Pillow does where the masks are announced.
        announced = bytearray(body)
        struct.pack_into("<I", announced, _COMPRESSION_AT, _BY_MASKS)
        body, compression = bytes(announced), _BY_MASKS
    source = RunLengthBmp(BytesIO(body))
    if masks[3] and compression == _BY_MASKS and source.mode != "RGBA":
        raise UnsupportedImage(
            f"a BMP with an alpha channel in {bits} bits a pixel is not supported"
        )
    if length >= _V5_BYTES and body[_SPACE_AT : _SPACE_AT + 4] == _EMBEDDED:
        start, size = struct.unpack_from("<2I", body, _PROFILE_AT)
        start += _FILE_HEADER_BYTES
        source.info["icc_profile"] = body[start : start + size]
    return source
