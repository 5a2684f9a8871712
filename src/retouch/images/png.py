"""Open a PNG as browsers do.

Ancillary chunks that are damaged, too large or not needed are left out. Of an animation the first frame
is the image, also where another one stands before it for programs that know no animations.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Final

from PIL.PngImagePlugin import PngImageFile

_SIZES: Final = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1}
_KEY_BYTES: Final = {b"\0": 2, b"\2": 6}
"""The size of tRNS by color type, where it names one color; else it has a byte an entry."""
_ANIMATION: Final = (b"acTL", b"fcTL", b"fdAT")
_END: Final = b"\0\0\0\0IEND\xaeB`\x82"
_MAX_PROFILE_BYTES: Final = 1 << 20  # Pillow's own limit
_MAX_INTEGER: Final = (1 << 31) - 1  # PNG, third edition, 7.1
_CHECKSUM_BYTES: Final = 4


def open_png(body: bytes) -> PngImageFile:
    """Read the header, and put `bit_depth`, `cicp`, `animated` and `end_missing` into `info`.

    Beside a transparent colour of 16-bit RGB there is `low_bytes`: Pillow reads only the high ones.

    Raises:
        Exception: of any type, from Pillow, where a critical chunk is damaged.
    """
    kept, pixels, chunks = list[bytes](), list[bytes](), dict[bytes, bytes]()
    animation = _Animation()
    for name, data, checksum in _read_chunks(body):
        is_intact = checksum == _compute_checksum(name, data)
        if is_intact and name in _ANIMATION:
            animation.add(name, data, chunks)
        if _is_critical(name) or (is_intact and _is_wanted(name, data, chunks)):
            chunks.setdefault(name, data)
            if name != b"IEND":
                (pixels if name == b"IDAT" else kept).append(_pack(name, data, checksum))
    pixels = animation.first_frame or pixels
    sound = b"".join((body[:8], *kept, *pixels, _END))
    source = PngImageFile(BytesIO(sound))
    if b"tRNS" in chunks and chunks[b"IHDR"][8:10] == b"\x10\2":  # RGB of 16 bits
        source.info["low_bytes"] = low = PngImageFile(BytesIO(sound))
        low.tile = [low.tile[0]._replace(args="RGB;16L")]  # of each sample the second byte
    source.info["bit_depth"] = chunks[b"IHDR"][8]
    source.info["animated"] = animation.frames > 1
    source.info["end_missing"] = b"IEND" not in chunks
    if b"cICP" in chunks:  # outranks the profile (PNG, third edition, 4.3)
        source.info["cicp"] = tuple(chunks[b"cICP"][:2])
        source.info.pop("icc_profile", None)
    return source


class _Animation:
    """The first frame, as IDAT chunks, where it is not the image itself but as large; and their number."""

    def __init__(self) -> None:
        self.first_frame: list[bytes] = []
        self.frames = 0
        self._is_apart = False

    def add(self, name: bytes, data: bytes, chunks: Mapping[bytes, bytes]) -> None:
        if name == b"acTL":
            frames = int.from_bytes(data[:4], "big")
            self.frames = 0 if b"IDAT" in chunks or frames > _MAX_INTEGER else frames
        elif name == b"fcTL":
            first = bytes(4) + chunks.get(b"IHDR", b"")[:8] + bytes(8)  # number, size, offset
            self._is_apart = self.frames > 0 and b"IDAT" in chunks and data[:20] == first
        elif self._is_apart:
            self.first_frame.append(_pack(b"IDAT", data[4:], b""))


def _read_chunks(body: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield name, data and checksum up to the end marker; the last may be cut, without a checksum."""
    position, name = 8, b""
    while name != b"IEND" and position + 8 <= len(body):
        length, name = struct.unpack_from(">I4s", body, position)
        end = position + 8 + length
        checksum = body[end : end + _CHECKSUM_BYTES]
        yield name, body[position + 8 : end], checksum if len(checksum) == _CHECKSUM_BYTES else b""
        position = end + _CHECKSUM_BYTES


def _compute_checksum(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def _pack(name: bytes, data: bytes, checksum: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + (checksum or _compute_checksum(name, data))


def _is_critical(name: bytes) -> bool:
    return not name[0] & 0x20


def _is_wanted(name: bytes, data: bytes, chunks: Mapping[bytes, bytes]) -> bool:
    """Whether an ancillary chunk changes pixels, has the form that libpng requires, and is the first."""
    if name in chunks or (b"IDAT" in chunks and name != b"eXIf"):  # PNG, third edition, 5.6
        return False
    if name == b"tRNS":
        key_bytes = _KEY_BYTES.get(chunks.get(b"IHDR", b"")[9:10])
        return bool(data) if key_bytes is None else len(data) == key_bytes
    if name == b"cICP":
        return data[2:] == b"\0\1"  # RGB in full range
    return (
        name == b"eXIf" or len(data) == _SIZES.get(name) or (name == b"iCCP" and _is_profile(data))
    )


def _is_profile(data: bytes) -> bool:
    _, _, packed = data.partition(b"\0")
    with suppress(zlib.error):
        unpacker = zlib.decompressobj()
        unpacker.decompress(packed[1:], _MAX_PROFILE_BYTES)
        return packed[:1] == b"\0" and not unpacker.unconsumed_tail
    return False
