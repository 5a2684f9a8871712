"""Recognise the format of an image file and read its header, by Pillow's class or by libheif.

Besides what Pillow puts into `info`, the openers put there `cicp` (color primaries and transfer
characteristics, two codes of ITU-T H.273) and `end_missing` (the file lacks its end marker).
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from pi_heif import options
from pi_heif.as_plugin import HeifImageFile
from pi_heif.heif import open_heif
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from retouch.errors import UnsupportedImage

# The ancillary chunks that change pixels. Others, such as text, are often damaged or too large for Pillow.
_PNG_CHUNKS: Final = frozenset(b"tRNS gAMA cHRM sRGB iCCP cICP eXIf acTL fcTL fdAT".split())
_MAX_PROFILE_BYTES: Final = 1 << 20  # Pillow's own limit
_OTHERS: Final[Mapping[str, re.Pattern[bytes]]] = {
    "an empty file": re.compile(rb"\Z"),
    "SVG": re.compile(rb"\s*<(svg|\?xml.{,1000}<svg|!--.{,1000}<svg|!DOCTYPE svg)", re.DOTALL),
    "a web page (HTML)": re.compile(rb"(?i)\s*<(!doctype html|html|head|body|script|!--)"),
    "XML": re.compile(rb"\s*<\?xml"),
    "JSON": re.compile(rb"\s*[{\[]"),
    "PDF": re.compile(rb"%PDF-"),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "a Photoshop file (PSD)": re.compile(rb"8BPS"),
    "an icon (ICO)": re.compile(rb"\0\0[\1\2]\0"),
    "a video": re.compile(rb"....ftyp|\x1aE\xdf\xa3", re.DOTALL),
}
_HEIF_CODINGS: Final = {
    b"vvc1": "VVC",
    b"j2k1": "JPEG 2000",
    b"unci": "uncompressed",
    b"avc1": "AVC",
    b"jpeg": "JPEG",
    b"av01": "AV1",
}

options.DECODE_THREADS = 1
options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False


def sniff(body: bytes) -> str:
    """Name the format, one of `FORMATS`, by the first bytes.

    Raises:
        UnsupportedImage: it is none of them; the message says what it is, where that is known.
    """
    for name, (signature, _) in FORMATS.items():
        if signature.match(body):
            return name
    text = "the source is not an image in one of " + ", ".join(FORMATS)
    found = next((f": it is {name}" for name, known in _OTHERS.items() if known.match(body)), "")
    raise UnsupportedImage(text + found)


def open_header(body: bytes, name: str) -> ImageFile:
    """Read the header, not the pixels, of a file in the format `name`.

    Raises:
        UnsupportedImage: HEIF that holds no HEVC image.
        Exception: of any type, from Pillow, where the file is damaged.
    """
    return FORMATS[name][1](body)


def name_heif_coding(body: bytes) -> str:
    """Name the coding of a HEIF file's images if it is one that libheif, as built here, cannot read."""
    return next((name for code, name in _HEIF_CODINGS.items() if code in body[:4096]), "")


def _open_by(kind: Callable[[BytesIO], ImageFile]) -> Callable[[bytes], ImageFile]:
    return lambda body: kind(BytesIO(body))


def _open_png(body: bytes) -> ImageFile:
    """Leave out ancillary chunks that are damaged or not needed; add a missing end marker."""
    kept, chunks = [body[:8]], dict[bytes, bytes]()
    for name, data, checksum in _read_png_chunks(body):
        computed = struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
        is_ancillary = name[:1].islower()
        if is_ancillary and (name not in _PNG_CHUNKS or checksum != computed):
            continue
        if name == b"iCCP" and not _is_profile(data):
            continue
        chunks.setdefault(name, data)
        kept += struct.pack(">I", len(data)), name, data, checksum or computed
    if b"IEND" not in chunks:
        kept.append(b"\0\0\0\0IEND\xaeB`\x82")
    source = PngImageFile(BytesIO(b"".join(kept)))
    source.info["bit_depth"] = chunks[b"IHDR"][8]
    if b"cICP" in chunks:  # outranks the profile (PNG, third edition, 4.3)
        source.info["cicp"] = tuple(chunks[b"cICP"][:2])
        source.info.pop("icc_profile", None)
    source.info["end_missing"] = b"IEND" not in chunks
    return source


def _read_png_chunks(body: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield name, data and checksum up to the end marker; the last may be cut, without a checksum."""
    position, name = 8, b""
    while name != b"IEND" and position + 8 <= len(body):
        length, name = struct.unpack_from(">I4s", body, position)
        end = position + 8 + length
        checksum = body[end : end + 4]
        yield name, body[position + 8 : end], checksum if len(checksum) == 4 else b""  # noqa: PLR2004
        position = end + 4


def _is_profile(chunk: bytes) -> bool:
    method, packed = chunk.partition(b"\0")[2][:1], chunk.partition(b"\0")[2][1:]
    with suppress(zlib.error):
        unpacker = zlib.decompressobj()
        unpacker.decompress(packed, _MAX_PROFILE_BYTES)
        return method == b"\0" and not unpacker.unconsumed_tail
    return False


def _open_avif(body: bytes) -> ImageFile:
    source = AvifImageFile(BytesIO(body))
    with suppress(Exception):  # libheif is stricter than libavif, and does not know sequences
        source.info["cicp"] = _get_cicp(open_heif(BytesIO(body)).info)
    return source


def _open_heif(body: bytes) -> ImageFile:
    source: ImageFile = HeifImageFile(BytesIO(body))  # type: ignore[no-untyped-call]
    source.info["cicp"] = _get_cicp(source.info)
    return source


def _get_cicp(info: Mapping[Any, Any]) -> tuple[int, int] | None:
    nclx = info.get("nclx_profile")
    return nclx and (nclx["color_primaries"], nclx["transfer_characteristics"])


FORMATS: Final[Mapping[str, tuple[re.Pattern[bytes], Callable[[bytes], ImageFile]]]] = {
    "jpeg": (re.compile(rb"\xff\xd8\xff"), _open_by(JpegImageFile)),
    "png": (re.compile(rb"\x89PNG\r\n\x1a\n"), _open_png),
    "webp": (re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL), _open_by(WebPImageFile)),
    "gif": (re.compile(rb"GIF8[79]a"), _open_by(GifImageFile)),
    "bmp": (re.compile(rb"BM"), _open_by(BmpImageFile)),
    "tiff": (re.compile(rb"II[*+]\0|MM\0[*+]"), _open_by(TiffImageFile)),
    # The brand may stand anywhere in the file type box: phones often put `mif1` first.
    "avif": (re.compile(rb"....ftyp(?:....){0,16}?avi[fs]", re.DOTALL), _open_avif),
    "heif": (
        re.compile(rb"....ftyp(?:....){0,16}?(?:hei[cxms]|hev[cxms]|mif[12]|msf1)", re.DOTALL),
        _open_heif,
    ),
}
