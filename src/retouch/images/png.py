"""Open a PNG as browsers do: without the ancillary chunks that are damaged, too large or not needed."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Final

from PIL.PngImagePlugin import PngImageFile

# The ancillary chunks that change pixels, with their least size. Those of an animation are not among
# them: its first frame is the image itself.
_WANTED: Final = {
    b"tRNS": 1,
    b"gAMA": 4,
    b"cHRM": 32,
    b"sRGB": 1,
    b"iCCP": 4,
    b"cICP": 4,
    b"eXIf": 8,
}
_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
_MAX_PROFILE_BYTES: Final = 1 << 20  # Pillow's own limit
_CHECKSUM_BYTES: Final = 4


def open_png(body: bytes) -> PngImageFile:
    """Read the header, and put `bit_depth`, `cicp`, `animated` and `end_missing` into `info`.

    Raises:
        Exception: of any type, from Pillow, where a critical chunk is damaged.
    """
    kept, chunks, animated = [body[:8]], dict[bytes, bytes](), False
    for name, data, checksum in _read_chunks(body):
        computed = struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
        animated |= name == b"acTL" and data[:4] > b"\0\0\0\1"
        if _is_critical(name) or (checksum == computed and _is_wanted(name, data)):
            chunks[name] = data
            kept += struct.pack(">I", len(data)), name, data, checksum or computed
    end_missing = b"IEND" not in chunks
    source = PngImageFile(BytesIO(b"".join(kept) + (_END if end_missing else b"")))
    bit_depth = chunks[b"IHDR"][8]
    source.info |= {"bit_depth": bit_depth, "animated": animated, "end_missing": end_missing}
    if b"cICP" in chunks:  # outranks the profile (PNG, third edition, 4.3)
        source.info["cicp"] = tuple(chunks[b"cICP"][:2])
        source.info.pop("icc_profile", None)
    return source


def _read_chunks(body: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield name, data and checksum up to the end marker; the last may be cut, without a checksum."""
    position, name = 8, b""
    while name != b"IEND" and position + 8 <= len(body):
        length, name = struct.unpack_from(">I4s", body, position)
        end = position + 8 + length
        checksum = body[end : end + _CHECKSUM_BYTES]
        yield name, body[position + 8 : end], checksum if len(checksum) == _CHECKSUM_BYTES else b""
        position = end + _CHECKSUM_BYTES


def _is_critical(name: bytes) -> bool:
    return not name[0] & 0x20


def _is_wanted(name: bytes, data: bytes) -> bool:
    return name in _WANTED and len(data) >= _WANTED[name] and (name != b"iCCP" or _is_profile(data))


def _is_profile(data: bytes) -> bool:
    _, _, packed = data.partition(b"\0")
    with suppress(zlib.error):
        unpacker = zlib.decompressobj()
        unpacker.decompress(packed[1:], _MAX_PROFILE_BYTES)
        return packed[:1] == b"\0" and not unpacker.unconsumed_tail
    return False
