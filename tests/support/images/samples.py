"""Make test images and decompression bombs in code, so that no binary file is committed."""

import itertools
import struct
import zlib
from functools import cache
from io import BytesIO
from typing import Any

import pillow_heif
from PIL import Image, ImageChops, ImageCms, ImageFilter, ImageStat, TiffImagePlugin

from retouch.images import decode

ORIENTATION_TAG = 0x0112
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def photo(width_px: int = 64, height_px: int = 48) -> Image.Image:
    """A smooth ramp in every channel with some deterministic grain."""
    across = Image.linear_gradient("L").rotate(90).resize((width_px, height_px))
    down = Image.linear_gradient("L").resize((width_px, height_px))
    grain = Image.new("L", (width_px, height_px))
    grain.putdata([(x * 7919) % 251 for x in range(width_px * height_px)])
    return Image.merge("RGB", (across, down, grain.filter(ImageFilter.GaussianBlur(1))))


def quarters(size_px: int = 32) -> Image.Image:
    """Red, green / blue, white: tells every orientation from every other."""
    image = Image.new("RGB", (size_px, size_px), WHITE)
    half = size_px // 2
    for box, colour in (((0, 0), RED), ((half, 0), GREEN), ((0, half), BLUE)):
        image.paste(colour, (*box, box[0] + half, box[1] + half))
    return image


@cache
def samples() -> dict[str, bytes]:
    """One valid picture of each accepted kind, by a name that starts with its format."""
    image = photo()
    frames = [image.rotate(90 * turn) for turn in range(3)]
    palette = image.quantize(16)
    palette.info["transparency"] = 3
    return {
        "jpeg": saved(image, "JPEG", quality=90),
        "jpeg progressive": saved(image, "JPEG", progressive=True, exif=oriented(6)),
        "jpeg cmyk": saved(image.convert("CMYK"), "JPEG"),
        "jpeg mpo": saved(image, "MPO", save_all=True, append_images=frames),
        "png": saved(image, "PNG"),
        "png animated": saved(image, "PNG", save_all=True, append_images=frames[1:]),
        "png palette": saved(palette, "PNG"),
        "png 16 bit": saved(Image.new("I;16", (40, 30), 30000), "PNG"),
        "webp": saved(image, "WEBP"),
        "webp lossless": saved(image.convert("RGBA"), "WEBP", lossless=True),
        "webp animated": saved(image, "WEBP", save_all=True, append_images=frames[1:]),
        "gif": saved(palette, "GIF"),
        "gif animated": saved(image, "GIF", save_all=True, append_images=frames[1:]),
        "bmp": saved(image, "BMP"),
        "tiff": saved(image, "TIFF"),
        "tiff lzw": saved(image, "TIFF", compression="tiff_lzw"),
        "tiff 16 bit": saved(Image.new("I;16", (40, 30), 30000), "TIFF"),
        "avif": saved(image, "AVIF"),
        "heif": heic(image),
        "avif animated": saved(image, "AVIF", save_all=True, append_images=frames[1:]),
    }


def heic(image: Image.Image, **options: Any) -> bytes:
    """A HEIC file, as phones store photos."""
    buffer = BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()


def oriented(orientation: int) -> bytes:
    """An EXIF block that holds nothing but the orientation."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    return exif.tobytes()


def srgb_profile() -> bytes:
    return bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def swapped_profile() -> bytes:
    """An RGB profile whose red and green primaries are sRGB's green and red."""
    profile = srgb_profile()
    return (
        profile.replace(b"rXYZ", b"tmp0", 1)
        .replace(b"gXYZ", b"rXYZ", 1)
        .replace(b"tmp0", b"gXYZ", 1)
    )


def cmyk_profile(always: tuple[int, int, int]) -> bytes:
    """A CMYK profile that reads any ink as one CIELAB colour (ICC.1:2010, lut8Type)."""
    light, a, b = round(always[0] * 2.55), always[1] + 128, always[2] + 128
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity
    table += ramp * 4 + bytes((light, a, b)) * 2**4 + ramp * 3
    header = struct.pack(">I4sI", 128 + 16 + len(table), b"", 0x02400000) + b"prtrCMYKLab "
    header = (header + bytes(12) + b"acsp").ljust(68, b"\0")
    header = (header + struct.pack(">3i", 63190, 65536, 54061)).ljust(128, b"\0")  # D50
    return header + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def png(
    size: tuple[int, int],
    pixels: bytes,
    *,
    bit_depth: int,
    colour_type: int,
    chunks: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """A PNG of any depth and colour type (PNG 11.2.1); `pixels` are the rows, packed."""
    rows = len(pixels) // size[1]
    data = b"".join(b"\0" + pixels[y * rows : (y + 1) * rows] for y in range(size[1]))
    header = struct.pack(">IIBBBBB", *size, bit_depth, colour_type, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in parts)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def tiff(
    size: tuple[int, int],
    *planes: bytes,
    bits: int,
    photometric: int = 1,
    sample_format: int = 1,
    order: str = "<",
    deflate: bool = False,
    extra_samples: int | None = None,
    color_map: list[int] | None = None,
) -> bytes:
    """A TIFF of one strip for each plane, in either byte order (TIFF 6.0, sections 2, 4, 5, 18 and 19)."""
    strips = [zlib.compress(plane) for plane in planes] if deflate else list(planes)
    ends = list(itertools.accumulate(map(len, strips), initial=8))
    count = len(strips)
    fields = {
        TiffImagePlugin.IMAGEWIDTH: [size[0]],
        TiffImagePlugin.IMAGELENGTH: [size[1]],
        TiffImagePlugin.BITSPERSAMPLE: [bits] * count,
        TiffImagePlugin.COMPRESSION: [8 if deflate else 1],
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: [photometric],
        TiffImagePlugin.STRIPOFFSETS: ends[:-1],
        TiffImagePlugin.SAMPLESPERPIXEL: [count],
        TiffImagePlugin.ROWSPERSTRIP: [size[1]],
        TiffImagePlugin.STRIPBYTECOUNTS: [len(strip) for strip in strips],
        TiffImagePlugin.PLANAR_CONFIGURATION: [2 if count > 1 else 1],
        TiffImagePlugin.COLORMAP: color_map or [],
        TiffImagePlugin.EXTRASAMPLES: [] if extra_samples is None else [extra_samples],
        TiffImagePlugin.SAMPLEFORMAT: [sample_format] * count,
    }
    fields = {tag: values for tag, values in fields.items() if values}
    entries, beside, place = b"", b"", ends[-1]
    for tag, values in fields.items():
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            beside, packed, place = (
                beside + packed,
                struct.pack(f"{order}I", place),
                place + len(packed),
            )
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    mark = b"II*\0" if order == "<" else b"MM\0*"
    header = mark + struct.pack(f"{order}I", place)
    directory = struct.pack(f"{order}H", len(fields)) + entries + bytes(4)
    return header + b"".join(strips) + beside + directory


def scan_bomb(size_px: int, scans: int) -> bytes:
    """A small progressive JPEG of `size_px` squared whose empty scans each cost a pass."""
    body = saved(Image.new("L", (size_px, size_px), 128), "JPEG", progressive=True)
    last = body.rindex(b"\xff\xda")
    scan = body[last : last + 2 + int.from_bytes(body[last + 2 : last + 4], "big")] + b"\0"
    return body[:-2] + scan * (scans - body.count(b"\xff\xda")) + b"\xff\xd9"


def wide_webp(width_px: int, height_px: int) -> bytes:
    """A transparent lossless WebP of 34 bytes: one colour takes no bits, whatever size is claimed."""
    body = bytearray(saved(Image.new("RGBA", (16, 16)), "WEBP", lossless=True))
    field = int.from_bytes(body[21:25], "little") >> 28 << 28  # keeps the alpha bit and the version
    body[21:25] = (field | (height_px - 1) << 14 | (width_px - 1)).to_bytes(4, "little")
    return bytes(body)


def colour_of(body: bytes, at: tuple[int, int] = (0, 0)) -> Any:
    """The colour of one pixel once decoded."""
    return decode.decode(body, decode.Limits()).image.getpixel(at)


def near(got: Any, wanted: Any, by: int = 2) -> bool:
    return all(abs(a - b) <= by for a, b in zip(got, wanted, strict=True))


def mean_difference(left: Image.Image, right: Image.Image) -> float:
    """The mean absolute difference of two RGB images over all samples, of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(left, right)).mean) / 3
