"""Convert decoded images to 8-bit sRGB."""

import math
from contextlib import suppress
from io import BytesIO
from typing import cast

from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from retouch.images import tiff


def match_key_to_pixels(source: ImageFile, bit_depth: int) -> None:
    """Bring a PNG's transparent colour to 8 bits, as Pillow did with the pixels but not with it."""
    key, top = source.info["transparency"], (1 << bit_depth) - 1
    if source.mode == "L":
        source.info["transparency"] = (key & top) * 255 // top
    else:
        source.info["transparency"] = tuple((value & top) >> (bit_depth - 8) for value in key)


def to_eight_bits(source: ImageFile) -> Image.Image:
    """Scale samples of more than 8 bits: Pillow's own conversion clips them, and scans turn white."""
    tags = tiff.read_tags(source)
    # "I;16", in either byte order, has no arithmetic of its own.
    samples = source.convert("I") if source.mode.startswith("I;") else source
    scale = 255 / white_level(source, bits=tags.get(BITSPERSAMPLE, (16,))[0])
    gray = samples.point(lambda value: value * scale + 0.5).convert("L")
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
        return gray.point(range(255, -1, -1))  # white is zero: Pillow heeds it up to 8 bits only
    key = source.info.get("transparency")
    if key is not None:
        gray.putalpha(samples.point([255 * (value != key) for value in range(65536)], "L"))
    return gray


def white_level(source: ImageFile, bits: int) -> float:
    """Find the sample value that means white; 32 bits tell it only by their brightest sample."""
    if source.mode.startswith("I;"):
        return (1 << bits) - 1
    brightest = cast("float", source.getextrema()[1])
    usual = (1, brightest) if source.mode == "F" else (255, 32767, 65535, brightest)
    return next((level for level in usual if brightest <= level < math.inf), 1)


def to_srgb(image: Image.Image, source: ImageFile) -> Image.Image:
    """Convert to RGB in sRGB by the embedded profile, by PNG's gamma, or by the mode alone."""
    colour = image.convert(image.mode[:-1]) if image.mode in ("LA", "RGBA") else image
    profile = source.info.get("icc_profile")
    if profile and colour.mode != "LAB":
        with suppress(Exception):  # a profile that is damaged or does not fit: take it as sRGB
            return _by_profile(colour, profile)
    colour = colour.convert("RGB")
    gamma = source.info.get("gamma")
    if source.format == "PNG" and gamma and "srgb" not in source.info:
        # PNG 13.13: the samples are light ** gamma, and sRGB is close to light ** 0.45455.
        exponent = 0.45455 / gamma
        return colour.point(lambda value: round(255 * (value / 255) ** exponent))
    return colour


def _by_profile(colour: Image.Image, profile: bytes) -> Image.Image:
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        colour.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return transform.apply(colour)
