"""What runs in `decoder`'s child, and the wire between: one picture in, raw pixels out, and the end.

The answer is `HEADER` (bytes of text, width, height, own width, own height), the text (format and
notes, or code and message, a line each), the pixels. Only Pillow, `images` and `errors` are imported,
and before `_restrict`: no file opens after.
"""

import json
import os
import resource
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from PIL import AvifImagePlugin, Image

from retouch import errors
from retouch.images import decode

Read = Callable[[int], bytes | bytearray]

READY: Final = b"\x01"
LENGTH: Final = struct.Struct(">Q")
HEADER: Final = struct.Struct(">5I")
_MAX_TEXT_BYTES: Final = 4096
_REFUSALS: Final = {
    refusal.code: refusal
    for refusal in (
        errors.UnsupportedImage,
        errors.BrokenImage,
        errors.ImageTooLarge,
        errors.AspectRatioTooExtreme,
        errors.DecodeLimitExceeded,
    )
}


def main() -> None:  # pragma: no cover  # runs in the child, where tests/integration sees it
    """Restrict this process, say so, decode what comes, write it, end."""
    options: dict[str, Any] = json.loads(sys.argv[-1])
    limits = decode.Limits(**options["limits"])
    # WebP's canvas is allocated on opening: Pillow refuses twice this number of pixels before.
    Image.MAX_IMAGE_PIXELS = (limits.max_pixels + 1) // 2
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # its threads would each take address space
    # Freed, a block as large as this makes glibc reuse memory that it would return to the system
    # (mallopt(3), M_MMAP_THRESHOLD): a third of the time of a small picture is page faults.
    bytearray(24 << 20)
    _restrict(options["cpu_seconds"], options["memory_bytes"])
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    prefix = sys.stdin.buffer.read(LENGTH.size)
    if prefix:  # else the parent is gone
        body = sys.stdin.buffer.read(*LENGTH.unpack(prefix))
        for part in answer(body, limits):
            sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
    os._exit(0)  # nothing to clean up


def _restrict(cpu_seconds: int, memory_bytes: int) -> None:  # pragma: no cover  # as `main`
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux; elsewhere the address space cannot be limited
        pages = int(statm.read_text(encoding="ascii").split()[0])
        _lower(resource.RLIMIT_AS, memory_bytes + pages * resource.getpagesize())
    _lower(resource.RLIMIT_CPU, cpu_seconds, kill_after=1)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        _lower(limit, 0)
    _lower(resource.RLIMIT_NOFILE, 3)  # the three open ones: no file, no socket can be opened


def _lower(limit: int, value: int, kill_after: int = 0) -> None:  # pragma: no cover  # as `main`
    hard = resource.getrlimit(limit)[1]  # what was inherited cannot be raised
    top = value + kill_after if hard == resource.RLIM_INFINITY else min(value + kill_after, hard)
    resource.setrlimit(limit, (min(value, top), top))


def answer(body: bytes, limits: decode.Limits) -> tuple[bytes, bytes, bytes]:
    """Decode `body` to the three parts of the answer; a picture that is refused has no pixels."""
    sizes, pixels = (0, 0, 0, 0), b""
    try:
        decoded = decode.decode(body, limits)
        pixels = decoded.image.tobytes()
    except errors.BadInput as error:
        lines = [error.code, error.message]
    else:
        sizes = (*decoded.image.size, decoded.width_px, decoded.height_px)
        lines = [decoded.format, *decoded.notes]
    text = "\n".join(lines).encode("ascii")
    return HEADER.pack(len(text), *sizes), text, pixels


def receive(read: Read, limits: decode.Limits) -> decode.Decoded:
    """Read a child's answer and believe nothing that `limits` do not allow.

    `read(count)` gives exactly that many bytes or raises.

    Raises:
        BadInput: the child refused the picture, or its answer is not one (`BrokenImage`).
    """
    length, *sizes = HEADER.unpack(read(HEADER.size))
    text = read(min(length, _MAX_TEXT_BYTES)).decode("ascii", "replace")
    kind, *lines = text.split("\n")
    if length > _MAX_TEXT_BYTES or not "".join(lines).isprintable():
        raise _not_understood()
    if kind in _REFUSALS:
        raise _REFUSALS[kind](" ".join(lines))
    width_px, height_px, own_width_px, own_height_px = sizes
    if (
        kind not in decode.FORMATS
        or not 0 < width_px * height_px <= limits.working_pixels
        or not 0 < own_width_px * own_height_px <= limits.max_pixels
    ):
        raise _not_understood()
    pixels = read(width_px * height_px * 3)
    image = Image.frombytes("RGB", (width_px, height_px), pixels)
    return decode.Decoded(image, own_width_px, own_height_px, kind, tuple(lines))


def _not_understood() -> errors.BrokenImage:
    return errors.BrokenImage("the image could not be decoded")
