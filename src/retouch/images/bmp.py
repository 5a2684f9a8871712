"""Open a BMP with what Pillow leaves out: its color profile, alpha channel, masks and run lengths."""

import struct
from io import BytesIO

from PIL.BmpImagePlugin import BmpImageFile

from retouch.images.bmp_masks import KNOWN_MASKS, STAND_INS, MaskedBmp, Masks
from retouch.images.bmp_runs import RunLengthBmp

# Offsets of fields from the file's start, and lengths of the header after the first 14 bytes.
_BITS_AT, _COMPRESSION_AT, _MASKS_AT, _SPACE_AT, _PROFILE_AT = 28, 30, 54, 70, 126
_CORE_BYTES, _V3_BYTES, _V4_BYTES, _V5_BYTES = 12, 56, 108, 124
_FILE_HEADER_BYTES = 14
_PLAIN, _BY_MASKS, _BY_ALPHA_MASKS = 0, 3, 6
_EMBEDDED = b"DEBM"
_ARGB = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)


def open_bmp(body: bytes) -> BmpImageFile:
    """Read the header; `info` has the embedded profile.

    Raises:
        Exception: of any type, from Pillow, where the file is damaged.
    """
    (length,) = struct.unpack_from("<I", body, _FILE_HEADER_BYTES)
    bits, compression = struct.unpack_from("<HI", body, _BITS_AT)
    if length <= _CORE_BYTES:  # these are pixels, or their palette
        compression = _PLAIN
    masks: Masks = struct.unpack_from("<4I", body.ljust(_MASKS_AT + 16, b"\0"), _MASKS_AT)
    if length < _V3_BYTES and compression != _BY_ALPHA_MASKS:
        masks = (*masks[:3], 0)
    # Browsers use the alpha channel also where the masks are not announced.
    is_hidden = (bits, compression, masks) == (32, _PLAIN, _ARGB) and length >= _V4_BYTES
    source: BmpImageFile
    if bits in STAND_INS and (is_hidden or compression in (_BY_MASKS, _BY_ALPHA_MASKS)):
        announced = bytearray(body)
        struct.pack_into("<I", announced, _COMPRESSION_AT, _BY_MASKS)
        source = _open_masked(announced, masks, bits, length)
    else:
        source = RunLengthBmp(BytesIO(body))
    if length >= _V5_BYTES and body[_SPACE_AT : _SPACE_AT + 4] == _EMBEDDED:
        start, size = struct.unpack_from("<2I", body, _PROFILE_AT)
        start += _FILE_HEADER_BYTES
        source.info["icc_profile"] = body[start : start + size]
    return source


def _open_masked(body: bytearray, masks: Masks, bits: int, length: int) -> BmpImageFile:
    """Open by Pillow's decoder if it has one for these masks. `body` may be changed."""
    if masks in KNOWN_MASKS and (length >= _V3_BYTES or not masks[3]):
        return BmpImageFile(BytesIO(body))
    stand_ins = STAND_INS[bits][: 4 if length >= _V3_BYTES else 3]
    struct.pack_into(f"<{len(stand_ins)}I", body, _MASKS_AT, *stand_ins)
    source = MaskedBmp(BytesIO(body))
    source.decode_by(masks, bits)
    return source
