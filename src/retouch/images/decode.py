"""Decode an image file to upright sRGB pixels, within limits, as a list of named steps.

Runs in the sandbox's child process, so it imports Pillow and the standard library only.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from retouch import errors
from retouch.images.colour import is_hdr, scale_to_8_bits, to_rgba, to_srgb
from retouch.images.formats import open_header, sniff
from retouch.images.heif import name_heif_coding
from retouch.images.jpeg import load_jpeg
from retouch.images.kind import Kind
from retouch.images.mask import resize_mask, to_mask
from retouch.images.tiff import require_readable_tiff

# Pillow scales a JPEG down while it decodes, in little memory: such a file may be this much larger.
_JPEG_FACTOR: Final = 4
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
_SIDEWAYS: Final = (5, 6, 7, 8)


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on an image. One over `max_…` is refused; above `working_pixels` it is reduced.

    `max_aspect` is the longer side divided by the shorter: at 20 a megapixel is 229 pixels high, 14 of
    the model's patches. The model sees about a megapixel, so `working_pixels` loses nothing.
    """

    max_pixels: int = 52_000_000
    max_side_px: int = 16_384
    max_aspect: float = 20.0
    working_pixels: int = 4_194_304

    def max_pixels_of(self, name: str) -> int:
        """Return the limit for a format: a JPEG may be larger, as it is scaled down while decoded."""
        return self.max_pixels * (_JPEG_FACTOR if name == "jpeg" else 1)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An upright RGB image in sRGB, or a mask in L, without metadata, of at most `working_pixels`.

    `width_px` and `height_px` are the file's own size, upright, before any reduction.
    """

    image: Image.Image
    width_px: int
    height_px: int
    format: str
    notes: tuple[str, ...] = ()


def decode(body: bytes, limits: Limits, kind: Kind = "picture") -> Decoded:
    """Decode the first image in `body`, in one of `FORMATS`, as a `kind`.

    Hostile input can take seconds and a gigabyte: `sandbox.Decoder` runs this in a process that can be
    killed.

    Raises:
        UnsupportedImage: not one of these formats, or a kind of TIFF that would be decoded wrongly.
        ImageTooLarge: more pixels, or a longer side, than `limits` allow.
        AspectRatioTooExtreme: one side is too long for the other.
        DecodeLimitExceeded: a JPEG has too many scans, or memory ran out.
        BrokenImage: damaged, truncated or of a kind that Pillow cannot decode.
    """
    name = sniff(body)
    try:
        return _run_steps(body, name, limits, kind)
    except errors.BadInput:
        raise
    except MemoryError as error:
        raise errors.DecodeLimitExceeded("decoding the image needs too much memory") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"the image is too large; MAX_IMAGE_PIXELS allows {limits.max_pixels}"
        raise errors.ImageTooLarge(message) from error
    except Exception as error:  # Pillow raises exceptions of any type on hostile bytes
        if name == "heif" and (coding := name_heif_coding(body)):
            message = f"the source is HEIF with {coding} images; of HEIF only HEVC can be read"
            raise errors.UnsupportedImage(message) from error
        message = "the image is damaged, truncated or of an unusual kind: it cannot be read as "
        raise errors.BrokenImage(message + name) from error


def _run_steps(body: bytes, name: str, limits: Limits, kind: Kind) -> Decoded:
    source = open_header(body, name)
    require_size(source.size, name, limits)
    require_readable_tiff(source)
    own_size = source.size
    source = load_pixels(source, body, limits)
    if kind == "mask":
        return _decode_mask(source, own_size, name, limits)
    plain = reduce_size(to_plain_mode(source), limits.working_pixels)
    alpha = get_alpha(plain)
    image = put_on_white(to_srgb(plain, source), alpha)
    orientation = read_orientation(source)
    image = turn_upright(image, orientation)
    width_px, height_px = own_size[::-1] if orientation in _SIDEWAYS else own_size
    notes = {
        "transparent parts of the source were put on white": alpha is not None,
        "the HDR tones of the source were mapped to standard range": is_hdr(source),
        "the very end of the source file is missing": bool(source.info.get("end_missing")),
        f"the source was reduced to {image.width} x {image.height} before the edit": (
            image.size != (width_px, height_px)
        ),
        "only the first frame of the source was used": has_more_frames(source),
    }
    image.info = {}
    return Decoded(
        image, width_px, height_px, name, tuple(note for note, so in notes.items() if so)
    )


def _decode_mask(
    source: ImageFile, own_size: tuple[int, int], name: str, limits: Limits
) -> Decoded:
    plain = to_plain_mode(source)
    if plain.mode in ("CMYK", "LAB"):
        plain = to_srgb(plain, source)
    mask = to_mask(plain)
    mask = resize_mask(mask, reduced_size(mask.size, limits.working_pixels))
    orientation = read_orientation(source)
    width_px, height_px = own_size[::-1] if orientation in _SIDEWAYS else own_size
    return Decoded(turn_upright(mask, orientation), width_px, height_px, name)


def require_size(size: tuple[int, int], name: str, limits: Limits) -> None:
    """Check width and height in pixels of a file in the format `name`.

    Raises:
        ImageTooLarge: more pixels, or a longer side, than allowed.
        AspectRatioTooExtreme: the longer side is over `max_aspect` times the shorter.
    """
    width_px, height_px = size
    text = f"the image is {width_px} x {height_px} pixels"
    if width_px * height_px > limits.max_pixels_of(name):
        text += f"; MAX_IMAGE_PIXELS allows {limits.max_pixels_of(name)}"
        raise errors.ImageTooLarge(text + (" in a JPEG" if name == "jpeg" else ""))
    if max(size) > limits.max_side_px:
        raise errors.ImageTooLarge(f"{text}; a side may have at most {limits.max_side_px}")
    if max(size) > limits.max_aspect * min(size):
        raise errors.AspectRatioTooExtreme(
            f"{text}; the longer side may be at most {limits.max_aspect:g} times the shorter one"
        )


def load_pixels(source: ImageFile, body: bytes, limits: Limits) -> ImageFile:
    """Decode the pixels; a JPEG far over `working_pixels` is scaled down by 2, 4 or 8 on the way."""
    if isinstance(source, JpegImageFile):
        return load_jpeg(source, body, limits.working_pixels)
    if source.format == "GIF" and source.tile:
        source.info["frame"] = source.tile[0].extents
    source.load()
    return source


def to_plain_mode(source: ImageFile) -> Image.Image:
    """Convert to 8 bits in a mode that can be resized: L, LA, RGB, RGBA, CMYK or LAB."""
    mode, whole = source.mode, (0, 0, *source.size)
    frame = source.info.get("frame", whole)
    if frame != whole:  # the first frame of a GIF may leave a part of the canvas clear
        canvas = Image.new("RGBA", source.size)
        canvas.paste(source.convert("RGBA").crop(frame), frame)
        return canvas
    if mode.startswith("I;16"):
        return scale_to_8_bits(source)
    if mode in ("La", "RGBa"):
        return source.convert(mode.upper())
    if source.has_transparency_data:
        return source if mode in ("LA", "RGBA") else to_rgba(source)
    if mode in ("L", "CMYK", "LAB"):
        return source
    return source.convert("L" if mode == "1" else "RGB")


def reduce_size(image: Image.Image, max_pixels: int) -> Image.Image:
    """Scale down to at most `max_pixels`, keeping the aspect ratio; never scale up."""
    size = reduced_size(image.size, max_pixels)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def reduced_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """Return the size in pixels scaled down to at most `max_pixels` in all; never up."""
    factor = math.sqrt(max_pixels / (size[0] * size[1]))
    if factor >= 1:
        return size
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


def get_alpha(image: Image.Image) -> Image.Image | None:
    """Return the alpha channel (mode L) of LA or RGBA, or None where every pixel is opaque."""
    if image.mode not in ("LA", "RGBA"):
        return None
    alpha = image.getchannel("A")
    return None if alpha.getextrema() == (255, 255) else alpha


def put_on_white(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Compose RGB over white by `alpha`, as browsers do on a page without a background."""
    if alpha is None:
        return image
    ground = Image.new("RGB", image.size, (255, 255, 255))
    ground.paste(image, mask=alpha)
    return ground


def read_orientation(source: ImageFile) -> int:
    """Read the EXIF orientation, 1 to 8, or 1 (upright) where it is missing or damaged."""
    source.info.pop("xmp", None)  # Pillow would take the orientation from there; browsers do not
    with suppress(Exception):  # damaged EXIF does not spoil a good image
        return int(source.getexif().get(_ORIENTATION_TAG, 1))
    return 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation; values other than 2 to 8 change nothing."""
    method = _UPRIGHT_BY_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)


def has_more_frames(source: ImageFile) -> bool:
    """Look for a second frame. Counting all of them would read the whole file."""
    with suppress(Exception):  # damage behind the first frame does not matter
        return bool(source.info.get("animated") or getattr(source, "is_animated", False))
    return False
