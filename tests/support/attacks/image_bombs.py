"""Hostile images that are large: in pixels, or by repetition of something costly."""

import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache

from support.images import samples

# At the limits of 50 million pixels, 16,384 a side and 20 to 1, beyond them, and far beyond them.
SIZES = (
    *((7071, 7071), (16384, 3051), (3051, 16384), (12247, 4082), (4000, 4000), (16384, 820)),
    *((7072, 7072), (16385, 3000), (9000, 9000), (65535, 65535), (2**31 - 1, 2**31 - 1)),
)
STRIPS = ((1, 65535), (65535, 1), (1, 16384), (21, 1), (1, 20), (16384, 819), (2**31 - 1, 1))
FAULTS = (*STRIPS, (0, 0), (0, 9), (9, 0), (2**32 - 1, 2**32 - 1), (2**31, 2), (65, 49), (640, 480))
# Colour type and depth of a PNG (PNG 11.2.1), with the bits of a pixel.
PNG_KINDS = ((0, 1, 1), (0, 8, 8), (0, 16, 16), (2, 8, 24), (4, 16, 32), (6, 8, 32), (6, 16, 64))
# Bits, samples, photometric and sample format of a TIFF (TIFF 6.0, sections 4 to 6, 16, 19 and 23).
TIFF_KINDS = ((1, 1, 0, 1), (8, 1, 1, 1), (16, 1, 0, 1), (32, 1, 1, 3), (8, 3, 8, 1), (8, 4, 5, 1))


def sample(rng: random.Random, start: str = "") -> bytes:
    fitting = [body for name, body in samples.samples().items() if name.startswith(start)]
    return rng.choice(fitting)


# --- size ------------------------------------------------------------------------------------


@cache
def deflated_zeros(count: int) -> bytes:
    packer = zlib.compressobj(1)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join(parts) + packer.compress(bytes(count & (1 << 20) - 1)) + packer.flush()


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = (samples.chunk(name, body) for name, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_bomb(rng: random.Random, size: tuple[int, int]) -> bytes:
    colour, depth, bits = rng.choice(PNG_KINDS)
    rows = size[1] * (1 + (size[0] * bits + 7) // 8)
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, rng.randrange(2))
    data = deflated_zeros(rows if rows < 1 << 29 else 1 << 20)
    return png_of([(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")])


def tiff(fields: dict[int, int], pixels: bytes, *, next_page: int = 0) -> bytes:
    """A little-endian TIFF of LONG fields, one strip and one directory."""
    fields = {273: 8, 279: len(pixels), **fields}
    entries = [struct.pack("<HHII", tag, 4, 1, fields[tag]) for tag in sorted(fields)]
    directory = struct.pack("<H", len(fields)) + b"".join(entries) + struct.pack("<I", next_page)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory


def tiff_bomb(rng: random.Random, size: tuple[int, int]) -> bytes:
    bits, samples, photometric, sample_format = rng.choice(TIFF_KINDS)
    rows = size[1] * ((size[0] * bits * samples + 7) // 8)
    pixels = deflated_zeros(rows if rows < 1 << 29 else 1 << 20)
    shape = {256: size[0], 257: size[1], 278: size[1], 277: samples, 258: bits}
    kind = {259: 8, 262: photometric, 339: sample_format}
    if samples > 1:  # several values do not fit an entry: they stand before the strip
        values = struct.pack(f"<{samples}H", *[bits] * samples)
        body = tiff(shape | kind | {273: 8 + len(values)}, values + pixels)
        entry = struct.pack("<HHII", 258, 4, 1, bits)
        return body.replace(entry, struct.pack("<HHII", 258, 3, samples, 8))
    return tiff(shape | kind, pixels)


@cache
def flat_avif(width_px: int, height_px: int) -> bytes:
    """Run in a process of its own: the peak memory of this one would count for its children too."""
    script = (
        "import sys, PIL.Image as I;"
        f"I.new('RGB', ({width_px}, {height_px})).save(sys.stdout.buffer, 'AVIF', speed=10)"
    )
    return subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout  # noqa: S603


def resized(body: bytes, width_px: int, height_px: int) -> bytes:
    """Patch the size that `body` declares; a value too large for its field is truncated."""
    changed = bytearray(body)
    short = struct.pack("<HH", width_px & 65535, height_px & 65535)
    if body.startswith(b"\x89PNG"):
        header = struct.pack(">II", width_px, height_px) + body[24:29]
        changed[8:33] = samples.chunk(b"IHDR", header)
    elif body.startswith(b"GIF"):
        changed[6:10] = short
    elif body.startswith(b"BM"):
        changed[18:26] = struct.pack("<II", width_px, height_px)
    elif body.startswith(b"\xff\xd8"):
        at = max(body.find(b"\xff\xc0"), body.find(b"\xff\xc2"))
        changed[at + 5 : at + 9] = struct.pack(">HH", height_px & 65535, width_px & 65535)
    elif body.startswith(b"RIFF"):
        changed[24:30] = (width_px & 0xFFFFFF).to_bytes(3, "little") * 2
    elif b"ispe" in body:
        at = body.index(b"ispe")
        changed[at + 8 : at + 16] = struct.pack(">II", width_px, height_px)
    else:
        for tag, value in ((b"\x00\x01", width_px), (b"\x01\x01", height_px)):
            at = body.rindex(tag + b"\x04\0\x01\0\0\0") if tag + b"\x04\0\x01\0\0\0" in body else 4
            changed[at + 8 : at + 12] = struct.pack("<I", value)
    return bytes(changed)


def pixel_bomb(rng: random.Random) -> bytes:
    size = rng.choice(SIZES)
    webp = min(size[0], 16384), min(size[1], 16384)
    makers: list[Callable[[], bytes]] = [
        lambda: png_bomb(rng, size),
        lambda: tiff_bomb(rng, size),
        lambda: samples.wide_webp(*webp),
        lambda: flat_avif(*rng.choice(((7071, 7071), (7100, 7100)))),
        lambda: resized(sample(rng, "jpeg"), *size),
        lambda: resized(sample(rng, "gif"), *size),
        lambda: resized(sample(rng, "bmp"), *size),
    ]
    return rng.choice(makers)()


def extreme_aspect(rng: random.Random) -> bytes:
    size = rng.choice(STRIPS)
    return rng.choice((png_bomb(rng, size), tiff_bomb(rng, size), resized(sample(rng), *size)))


def lying_size(rng: random.Random) -> bytes:
    return resized(sample(rng), *rng.choice(FAULTS))


# --- repetition ------------------------------------------------------------------------------


def many_scans(rng: random.Random) -> bytes:
    body = samples.scan_bomb(rng.choice((64, 500)), 50)
    scan = body[body.rindex(b"\xff\xda") : -2]
    # Nothing, fill bytes, TEM, a restart, a comment: what may stand between two scans (T.81, B.1.1).
    between = rng.choice((b"", b"\xff" * 9, b"\xff\x01", b"\xff\xd3", b"\xff\xfe\0\x04\xff\xda"))
    body = body[:-2] + (between + scan) * rng.choice((40, 50, 51, 2000)) + b"\xff\xd9"
    body = resized(body, *rng.choice(((64, 64), (2000, 2000), (7071, 7071))))
    if rng.random() < 0.2:  # within a TIFF, where libtiff reads it
        return tiff({256: 500, 257: 500, 258: 8, 259: 7, 262: 1, 277: 1, 278: 500}, body)
    return body


def many_frames(rng: random.Random) -> bytes:
    body, count = sample(rng, rng.choice(("gif", "png", "webp", "avif", "jpeg mpo"))), 20_000
    frame = b"\x21\xf9\x04\0\0\0\0\0" + b"\x2c" + bytes(8) + b"\0\x02\0"
    pages = {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 277: 1, 278: 1}
    control = samples.chunk(b"fcTL", struct.pack(">5IHHBB", 0, 1, 1, 0, 0, 1, 1, 0, 0))
    animation = samples.chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    png = sample(rng, "png")
    tail = sample(rng, "webp animated")
    makers = (
        lambda: sample(rng, "gif")[:-1] + frame * count + b"\x3b",
        lambda: tiff(pages, b"\0", next_page=9),  # the page after the first is the first
        lambda: png[:33] + animation + control * count + png[33:],
        lambda: tail + tail[tail.index(b"ANMF") :] * 2000,
        lambda: body * 500,
    )
    return rng.choice(makers)()


def odd_chunks(rng: random.Random) -> bytes:
    png, jpeg = sample(rng, "png"), sample(rng, "jpeg")
    name = rng.choice((b"IDAT", b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"iCCP", b"eXIf", b"zzzz"))
    huge = struct.pack(">I", rng.choice((2**31 - 1, 2**32 - 1, 70_000))) + name
    small = samples.chunk(name, rng.randbytes(rng.choice((0, 1, 4, 13))))
    at = rng.choice((8, 33, png.index(b"IDAT") - 4, len(png) - 12))
    segment = rng.choice((0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDB, 0xC4, 0xDD)).to_bytes(1, "big")
    data = rng.randbytes(rng.choice((0, 2, 14, 64)))
    marker = b"\xff" + segment + struct.pack(">H", len(data) + 2) + data
    length = rng.choice((b"\0\0", b"\0\1", b"\xff\xff"))
    gif = sample(rng, "gif")
    makers = (
        lambda: png[:at] + huge + png[at:],
        lambda: png[:at] + small * rng.choice((1, 2, 200_000)) + png[at:],
        lambda: jpeg[:2] + marker * rng.choice((1, 3, 100_000)) + jpeg[2:],
        lambda: jpeg[:2] + b"\xff" + segment + length + jpeg[2:],
        lambda: gif[:13] + b"\x21\xfe\x01x\0" * 400_000 + gif[13:],
        lambda: resized_riff(sample(rng, "webp"), rng),
    )
    return rng.choice(makers)()


def resized_riff(body: bytes, rng: random.Random) -> bytes:
    at = rng.choice((4, 16))
    return body[:at] + struct.pack("<I", rng.choice((0, 1, 2**31, 2**32 - 1))) + body[at + 4 :]
