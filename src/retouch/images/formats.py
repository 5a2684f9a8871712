"""Recognise the format of an image file and read its header, by Pillow's class or by libheif.

Besides what Pillow puts into `info`, the openers put there `cicp` (color primaries and transfer
characteristics, two codes of ITU-T H.273), `animated` and `end_missing`, where the format has them.
"""

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Final

from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from retouch.errors import UnsupportedImage
from retouch.images.bmp import open_bmp
from retouch.images.heif import open_avif, open_heif
from retouch.images.jpeg import open_jpeg
from retouch.images.png import open_png

_SNIFFED_BYTES: Final = 4096
_OTHERS: Final[Mapping[str, re.Pattern[bytes]]] = {
    "an empty file": re.compile(rb"\Z"),
    "SVG": re.compile(rb"\s*<(svg|\?xml.{,1000}<svg|!--.{,1000}<svg|!DOCTYPE svg)", re.DOTALL),
    "a web page (HTML)": re.compile(
        rb"(?i)\s*<(!doctype html|html|head|body|title|meta|script|!--|\?xml.{,1000}<html)",
        re.DOTALL,
    ),
    "XML": re.compile(rb"\s*<\?xml"),
    "JSON": re.compile(rb"\s*[{\[]"),
    "PDF": re.compile(rb"\s*%PDF-"),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "a Photoshop file (PSD)": re.compile(rb"8BPS"),
    "an icon (ICO)": re.compile(rb"\0\0[\1\2]\0"),
    "a camera's raw file": re.compile(rb"....ftypcrx ", re.DOTALL),
    "a video": re.compile(rb"....ftyp|\x1aE\xdf\xa3", re.DOTALL),
    "an archive (ZIP)": re.compile(rb"PK\x03\x04"),
    "a compressed file (gzip)": re.compile(rb"\x1f\x8b\x08"),
    "text": re.compile(rb"[\t\n\r -~]{64}|[\t\n\r -~]+\Z"),
}


def sniff(body: bytes) -> str:
    """Name the format, one of `FORMATS`, by the first bytes.

    Raises:
        UnsupportedImage: the format is not accepted; the message names it if it is known.
    """
    for name, (signature, _) in FORMATS.items():
        if signature.match(body):
            return name
    text = "the source is not an image in one of " + ", ".join(FORMATS)
    start = body[:_SNIFFED_BYTES].removeprefix(BOM_UTF8)
    found = next((f": it is {name}" for name, known in _OTHERS.items() if known.match(start)), "")
    raise UnsupportedImage(text + found)


def open_header(body: bytes, name: str) -> ImageFile:
    """Read the header, not the pixels, of a file in the format `name`.

    Raises:
        UnsupportedImage: HEIF that holds no HEVC image.
        Exception: of any type, from Pillow, where the file is damaged.
    """
    return FORMATS[name][1](body)


def _open_by(kind: Callable[[BytesIO], ImageFile]) -> Callable[[bytes], ImageFile]:
    return lambda body: kind(BytesIO(body))


FORMATS: Final[Mapping[str, tuple[re.Pattern[bytes], Callable[[bytes], ImageFile]]]] = {
    "jpeg": (re.compile(rb"\xff\xd8\xff"), open_jpeg),
    "png": (re.compile(rb"\x89PNG\r\n\x1a\n"), open_png),
    "webp": (re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL), _open_by(WebPImageFile)),
    "gif": (re.compile(rb"GIF8[79]a"), _open_by(GifImageFile)),
    "bmp": (re.compile(rb"BM"), open_bmp),
    "tiff": (re.compile(rb"II[*+]\0|MM\0[*+]"), _open_by(TiffImageFile)),
    # The brand may stand anywhere in the file type box: phones often put `mif1` first.
    "avif": (re.compile(rb"....ftyp(?:....){0,16}?avi[fs]", re.DOTALL), open_avif),
    "heif": (
        re.compile(rb"....ftyp(?:....){0,16}?(?:hei[cxms]|hev[cxms]|mif[12]|msf1)", re.DOTALL),
        open_heif,
    ),
}
