"""Make hostile images in code; `make(seed, number)` always makes the same one.

Only the time stamps that profiles, AVIF sequences and PDF files carry differ.
"""

import random
import struct
from collections.abc import Callable

from PIL import Image

from support.attacks.image_bombs import (
    deflated_zeros,
    extreme_aspect,
    lying_size,
    many_frames,
    many_scans,
    odd_chunks,
    pixel_bomb,
    sample,
)
from support.images import samples

Attack = Callable[[random.Random], bytes]


def make(seed: int, number: int) -> tuple[str, bytes]:
    """Return the class of the attack and the bytes."""
    rng = random.Random(f"{seed}/{number}")  # noqa: S311  # not for secrets
    name = TURNS[number % len(TURNS)]
    return name, ATTACKS[name](rng)


# --- metadata --------------------------------------------------------------------------------


def text_bomb(rng: random.Random) -> bytes:
    packed = deflated_zeros(rng.choice((1 << 20, 70 << 20, 300 << 20)))
    name, body = rng.choice(
        (
            (b"iCCP", b"profile\0\0" + packed),
            (b"zTXt", b"Comment\0\0" + packed),
            (b"iTXt", b"Comment\0\1\0\0\0" + packed),
            (b"tEXt", b"Comment\0" + bytes(2 << 20)),
        )
    )
    png = sample(rng, "png")
    at = rng.choice((33, len(png) - 12))
    return png[:at] + samples.chunk(name, body) * rng.choice((1, 1, 10)) + png[at:]


def odd_profile(rng: random.Random) -> bytes:
    whole = rng.choice((samples.srgb_profile(), samples.cmyk_profile((60, 40, -40))))
    profile = bytearray(whole)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(profile) - 4)
        profile[at : at + 4] = rng.choice((rng.randbytes(4), b"\xff" * 4, b"\x7f" + b"\xff" * 3))
    kind = rng.randrange(4)
    if kind == 0:
        profile += bytes(rng.choice((60_000, 4 << 20)))
        profile[:4] = struct.pack(">I", len(profile))
    elif kind == 1:
        del profile[rng.randrange(len(profile)) :]
    mode = "CMYK" if whole[16:20] == b"CMYK" else "RGB"
    image_format = rng.choice(
        ("JPEG", "TIFF") if mode == "CMYK" else ("JPEG", "PNG", "WEBP", "AVIF")
    )
    return samples.saved(Image.new(mode, (64, 48)), image_format, icc_profile=bytes(profile))


def odd_exif(rng: random.Random) -> bytes:
    entry = struct.pack(
        "<HHI4s",
        rng.choice((0x0112, 0x8769, 0x8825, 0xA005, 0x014A, 0x010E)),
        rng.randrange(14),
        rng.choice((0, 1, 2, 2**16, 2**28, 2**32 - 1)),
        rng.choice((b"\x08\0\0\0", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x06\0\0\0", b"\x09\0\0\0")),
    )
    count = rng.choice((1, 1, 4, 5000))
    claimed = struct.pack("<H", rng.choice((count, 65535)))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + claimed + entry * count + struct.pack("<I", 8)
    image_format = rng.choice(("JPEG", "PNG", "WEBP"))
    return samples.saved(samples.photo(), image_format, exif=exif)


# --- damage ----------------------------------------------------------------------------------


def flipped(rng: random.Random) -> bytes:
    changed = bytearray(sample(rng))
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[rng.randrange(rng.choice((64, len(changed))))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(rng: random.Random) -> bytes:
    body = sample(rng)
    return body[: rng.randrange(rng.choice((64, len(body))))]


def spliced(rng: random.Random) -> bytes:
    head, tail = sample(rng), sample(rng)
    at = rng.randrange(rng.choice((64, len(head))))
    return head[:at] + tail[rng.choice((0, at, rng.randrange(len(tail)))) :]


def appended(rng: random.Random) -> bytes:
    more = (sample(rng), rng.randbytes(1000), bytes(8 << 20), b"PK\3\4", b"<script>", b"%PDF-1.7")
    return sample(rng) + rng.choice(more)


def only_a_start(rng: random.Random) -> bytes:
    start = sample(rng)[: rng.choice((0, 4, 12, 32))]
    return start + rng.choice(
        (bytes(rng.choice((0, 1, 1 << 20))), rng.randbytes(rng.choice((40, 9000))))
    )


def refused_format(rng: random.Random) -> bytes:
    by_hand = (
        b"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><svg>&a;</svg>",
        b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(64),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n%%EOF\n",
        b"\xd7\xcd\xc6\x9a" + bytes(40),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
        b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64),
        b"#define a_width 9999\n#define a_height 9999\nstatic char a_bits[] = {0x00};",
    )
    written = (
        "PDF",
        "ICO",
        "ICNS",
        "JPEG2000",
        "PPM",
        "TGA",
        "PCX",
        "DDS",
        "SGI",
        "EPS",
        "IM",
        "QOI",
    )
    kind = rng.choice((*by_hand, *written))
    body = kind if isinstance(kind, bytes) else samples.saved(samples.photo(), kind)
    return body if rng.random() < 0.7 else body[: rng.randrange(len(body))]


ATTACKS: dict[str, Attack] = {
    "pixel bombs": pixel_bomb,
    "progressive scans": many_scans,
    "frame bombs": many_frames,
    "text and profile bombs": text_bomb,
    "odd chunks": odd_chunks,
    "broken profiles": odd_profile,
    "EXIF loops and counts": odd_exif,
    "extreme aspects": extreme_aspect,
    "lying sizes": lying_size,
    "bit flips": flipped,
    "truncation": truncated,
    "splices": spliced,
    "appended data": appended,
    "a start and nothing": only_a_start,
    "refused formats": refused_format,
}
# What is costly comes once in a round, the rest twice.
TURNS = (*ATTACKS, *tuple(ATTACKS)[5:])
