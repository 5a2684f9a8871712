"""Recognise the format of an image file and read its header, by Pillow's class or by libheif.

Besides what Pillow puts into `info`, the openers put there `cicp` (color primaries and transfer
characteristics, two codes of ITU-T H.273), `animated` and `end_missing`, where the format has them.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any, Final

from pi_heif import options
from pi_heif.as_plugin import HeifImageFile
from pi_heif.heif import open_heif
from PIL.AvifImagePlugin import AvifImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from retouch.errors import UnsupportedImage
from retouch.images.bmp import open_bmp
from retouch.images.png import open_png

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
# Browsers show BT.709 and its like as sRGB in AVIF, but by BT.1886 in PNG (Chromium 151).
_VIDEO_TRANSFERS, _SRGB = (1, 6, 14, 15), 13
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
        UnsupportedImage: the format is not accepted; the message names it if it is known.
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
    if not nclx:
        return None
    transfer = nclx["transfer_characteristics"]
    return nclx["color_primaries"], _SRGB if transfer in _VIDEO_TRANSFERS else transfer


FORMATS: Final[Mapping[str, tuple[re.Pattern[bytes], Callable[[bytes], ImageFile]]]] = {
    "jpeg": (re.compile(rb"\xff\xd8\xff"), _open_by(JpegImageFile)),
    "png": (re.compile(rb"\x89PNG\r\n\x1a\n"), open_png),
    "webp": (re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL), _open_by(WebPImageFile)),
    "gif": (re.compile(rb"GIF8[79]a"), _open_by(GifImageFile)),
    "bmp": (re.compile(rb"BM"), open_bmp),
    "tiff": (re.compile(rb"II[*+]\0|MM\0[*+]"), _open_by(TiffImageFile)),
    # The brand may stand anywhere in the file type box: phones often put `mif1` first.
    "avif": (re.compile(rb"....ftyp(?:....){0,16}?avi[fs]", re.DOTALL), _open_avif),
    "heif": (
        re.compile(rb"....ftyp(?:....){0,16}?(?:hei[cxms]|hev[cxms]|mif[12]|msf1)", re.DOTALL),
        _open_heif,
    ),
}
