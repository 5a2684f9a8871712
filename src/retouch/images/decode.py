"""Bytes to pictures and back, within limits: format, size, colour, transparency, orientation.

Imported in the decoder's child process, so it needs Pillow and the standard library only.
"""

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from retouch import errors
from retouch.images import tiff
from retouch.images.colour import match_key_to_pixels, to_eight_bits, to_srgb

# Pillow's classes are called, not `Image.open`: the first bytes decide the format, and the size is not
# judged by a limit that is global to the process.
FORMATS: Final[Mapping[str, tuple[re.Pattern[bytes], Callable[[BytesIO], ImageFile]]]] = {
    "jpeg": (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    "png": (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    "webp": (re.compile(rb"RIFF....WEBPVP8[ LX]", re.DOTALL), WebPImageFile),
    "gif": (re.compile(rb"GIF8[79]a"), GifImageFile),
    "bmp": (re.compile(rb"BM"), BmpImageFile),
    "tiff": (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    # The brand may be any of the file type box: a still from a phone often says `mif1` first.
    "avif": (re.compile(rb"....ftyp(?:....){0,16}?avi[fs]", re.DOTALL), AvifImageFile),
}

# A progressive JPEG has about ten scans. Each costs a pass over the picture: thousands of empty ones
# keep a decoder busy for a quarter of a minute (libjpeg-turbo #284, known as LJT-01-003).
_MAX_SCANS: Final = 100
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
# A marker with a length behind it: neither a stuffed zero, nor TEM, nor a restart, nor a fill byte.
_MARKER: Final = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")

_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT_BY_ORIENTATION: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a picture may cost. A larger one is refused; a larger result is reduced.

    `max_aspect` is the longer side by the shorter: at 20 a megapixel is 229 pixels high, 14 of the
    model's patches. `working_pixels` bounds what is handed on: the model sees about a megapixel.
    """

    max_pixels: int = 50_000_000
    max_side_px: int = 16_384
    max_aspect: float = 20.0
    working_pixels: int = 4_194_304


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture in RGB, sRGB, upright, without metadata and at most `working_pixels` large.

    `width_px` and `height_px` are its own size, upright, before any reduction.
    """

    image: Image.Image
    width_px: int
    height_px: int
    format: str
    notes: tuple[str, ...] = ()


def decode(body: bytes, limits: Limits) -> Decoded:
    """Decode the first picture in `body`: JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF.

    May take seconds and a gigabyte on hostile input: `retouch.decoder` runs it where it can be ended.

    Raises:
        UnsupportedImage: the first bytes are of none of these formats.
        ImageTooLarge: it has more pixels, or a longer side, than `limits` allow.
        ImageTooNarrow: its sides are too unlike.
        ImageTooCostly: it has too many scans, or needs more memory than there is.
        BrokenImage: it is damaged, truncated or of a kind that cannot be decoded.
    """
    name = _sniff(body)
    if name == "jpeg" and _has_too_many_scans(body):
        raise errors.DecodeLimitExceeded(f"the JPEG has more than {_MAX_SCANS} scans")
    try:
        return _decode(body, name, limits)
    except errors.BadInput:
        raise
    except MemoryError as error:
        raise errors.DecodeLimitExceeded("decoding the image needs too much memory") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"the image is too large; MAX_IMAGE_PIXELS allows {limits.max_pixels}"
        raise errors.ImageTooLarge(message) from error
    except Exception as error:  # Pillow raises what it likes on hostile bytes
        message = "the image is damaged, truncated or of an unusual kind: it cannot be read as "
        raise errors.BrokenImage(message + name) from error


def _sniff(body: bytes) -> str:
    for name, (signature, _) in FORMATS.items():
        if signature.match(body):
            return name
    raise errors.UnsupportedImage("the source is not an image in one of " + ", ".join(FORMATS))


def _has_too_many_scans(body: bytes) -> bool:
    """Count the scans of the first picture only: a film appended by a phone holds any bytes."""
    if body.count(_START_OF_SCAN) <= _MAX_SCANS:
        return False
    scans, position = 0, 2
    while marker := _MARKER.search(body, position):
        position = marker.end()
        if marker[0] == _END_OF_IMAGE:
            return False
        scans += marker[0] == _START_OF_SCAN
        if scans > _MAX_SCANS:
            return True
        position += int.from_bytes(body[position : position + 2], "big")
    return False


def _decode(body: bytes, name: str, limits: Limits) -> Decoded:
    notes: list[str] = []
    source = FORMATS[name][1](BytesIO(body))
    _require_size(source.width, source.height, limits)
    tiff.mend_layout(source)
    source.load()
    image = _reduce(_plain(source, body), limits)
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    image = to_srgb(image, source)
    if alpha is not None and alpha.getextrema() != (255, 255):
        ground = Image.new("RGB", image.size, (255, 255, 255))
        ground.paste(image, mask=alpha)
        image = ground
        notes.append("transparent parts of the source were put on white")
    orientation = _orientation(source)
    if orientation in _UPRIGHT_BY_ORIENTATION:
        image = image.transpose(_UPRIGHT_BY_ORIENTATION[orientation])
    width_px, height_px = source.size[::-1] if orientation in (5, 6, 7, 8) else source.size
    if image.size != (width_px, height_px):
        notes.append(f"the source was reduced to {image.width} x {image.height} before the edit")
    if _has_more_frames(source):
        notes.append("only the first frame of the source was used")
    image.info = {}
    return Decoded(image, width_px, height_px, name, tuple(notes))


def _require_size(width_px: int, height_px: int, limits: Limits) -> None:
    size = f"the image is {width_px} x {height_px} pixels"
    if width_px * height_px > limits.max_pixels:
        raise errors.ImageTooLarge(f"{size}; MAX_IMAGE_PIXELS allows {limits.max_pixels}")
    long_px, short_px = max(width_px, height_px), min(width_px, height_px)
    if long_px > limits.max_side_px:
        raise errors.ImageTooLarge(f"{size}; a side may have at most {limits.max_side_px}")
    if long_px > limits.max_aspect * short_px:
        raise errors.AspectRatioTooExtreme(
            f"{size}; the longer side may be at most {limits.max_aspect:g} times the shorter one"
        )


def _plain(source: ImageFile, body: bytes) -> Image.Image:
    """Bring the pixels to 8 bits in L, LA, RGB, RGBA, CMYK or LAB: modes that can be resized."""
    mode = source.mode
    if mode.startswith(("I", "F")):
        return to_eight_bits(source)
    if mode == "La":
        return source.convert("LA")
    if source.has_transparency_data:
        if source.format == "PNG" and mode in ("L", "RGB"):
            match_key_to_pixels(source, bit_depth=body[24])
        return source if mode in ("LA", "RGBA") else source.convert("RGBA")
    if mode in ("L", "CMYK", "LAB"):
        return source
    return source.convert("L" if mode == "1" else "RGB")


def _reduce(image: Image.Image, limits: Limits) -> Image.Image:
    factor = math.sqrt(limits.working_pixels / (image.width * image.height))
    if factor >= 1:
        return image
    size = max(1, int(image.width * factor)), max(1, int(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS)


def _orientation(source: ImageFile) -> int:
    with suppress(Exception):  # damaged EXIF, after a good picture, turns nothing
        return int(source.getexif().get(_ORIENTATION_TAG, 1))
    return 1


def _has_more_frames(source: ImageFile) -> bool:
    """Look for a second frame, never for their number: that would walk the whole file."""
    with suppress(Exception):  # damage behind the first frame does not matter
        return bool(getattr(source, "is_animated", False))
    return False
