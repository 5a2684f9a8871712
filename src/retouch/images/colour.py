"""Convert decoded images to 8-bit sRGB."""

import struct
from contextlib import suppress
from io import BytesIO
from typing import Any

from PIL import Image, ImageChops, ImageCms
from PIL.ImageFile import ImageFile

from retouch.images.profile import HLG, PQ, build_cicp_profile, build_profile, gamma_curve


def scale_to_8_bits(source: ImageFile) -> Image.Image:
    """Convert 16-bit gray (mode I;16 or I;16B) to L, or to LA where a PNG names a transparent value.

    Pillow's own conversion clips at 255 instead of scaling.
    """
    samples = source.convert("I")  # I;16 has no arithmetic of its own
    gray = samples.point(lambda value: value * (1 / 257) + 0.5).convert("L")
    key = source.info.get("transparency")
    if key is not None:
        gray.putalpha(samples.point([255 * (value != key) for value in range(65536)], "L"))
    return gray


def to_rgba(source: ImageFile) -> Image.Image:
    """Convert to RGBA; scale a PNG's transparent colour (tRNS), as Pillow did with the pixels."""
    key: Any = source.info.get("transparency")
    bit_depth = source.info.get("bit_depth", 8)
    top = (1 << bit_depth) - 1
    if (source.format, source.mode) == ("PNG", "L"):
        source.info["transparency"] = (key & top) * 255 // top
    elif (source.format, source.mode) == ("PNG", "RGB"):
        source.info["transparency"] = tuple((value & top) >> (bit_depth - 8) for value in key)
    image = source.convert("RGBA")
    if low := source.info.get("low_bytes"):  # a pixel is transparent if both bytes are the key's
        low.info["transparency"] = tuple(value & 255 for value in key)
        alphas = (each.getchannel("A") for each in (image, low.convert("RGBA")))
        image.putalpha(ImageChops.lighter(*alphas))
    return image


def is_hdr(source: ImageFile) -> bool:
    """Whether `to_srgb` maps PQ or HLG tones to standard range."""
    _, transfer = source.info.get("cicp") or (0, 0)
    return transfer in (PQ, HLG) and "icc_profile" not in source.info


def to_srgb(image: Image.Image, source: ImageFile) -> Image.Image:
    """Convert L, LA, RGB, RGBA, CMYK or LAB to RGB in sRGB, without alpha.

    Uses the profile embedded in `source`, else its color codes (CICP), else PNG's chromaticities and
    gamma, else the mode alone.
    """
    colour = image.convert(image.mode[:-1]) if image.mode in ("LA", "RGBA") else image
    profile = source.info.get("icc_profile")
    if profile and colour.mode != "LAB":
        with suppress(Exception):  # a profile that is damaged or does not fit is ignored
            return _apply_profile(colour, profile)
    colour = colour.convert("RGB")
    cicp, gamma = source.info.get("cicp"), source.info.get("gamma")
    if cicp:
        profile = build_cicp_profile(*cicp)
        return _apply_profile(colour, profile) if profile else colour
    if not gamma or source.format != "PNG" or "srgb" in source.info:
        return colour
    if chromaticities := source.info.get("chromaticity"):
        with suppress(ArithmeticError, struct.error, ImageCms.PyCMSError):  # impossible ones
            return _apply_profile(colour, build_profile(chromaticities, gamma_curve(1 / gamma)))
    # PNG 13.13: a sample is light ** gamma, and sRGB is close to light ** 0.45455.
    exponent = 0.45455 / gamma
    return colour.point(lambda value: round(255 * (value / 255) ** exponent))


def _apply_profile(colour: Image.Image, profile: bytes) -> Image.Image:
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        colour.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return transform.apply(colour)
