"""The child process of the sandbox, and its protocol: one image in, raw pixels out, exit.

The request is `REQUEST` (is it a mask, bytes of the file) and the file. The answer is `HEADER` (bytes of
text, width, height, the file's own width and height), the text (format and notes, or error code and
message, one a line) and the pixels. Everything is imported before `_restrict`: no file can be opened
after it.
"""

import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from PIL import AvifImagePlugin, Image

from retouch import errors
from retouch.images import decode, formats
from retouch.images.kind import MODES, Kind
from retouch.images.seccomp import forbid_processes

Read = Callable[[int], bytes | bytearray]

REQUEST: Final = struct.Struct(">?Q")
HEADER: Final = struct.Struct(">5I")
_MAX_TEXT_BYTES: Final = 4096
_STRIP_BYTES = 1 << 20
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
    """Restrict this process, decode one image from stdin to stdout, exit."""
    # The supervisor sends SIGTERM to every process; edits in progress still need theirs decoded.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(OSError):  # where memory runs out the kernel ends this process, not the model's
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    options: dict[str, Any] = json.loads(sys.argv[-1])
    limits = decode.Limits(**options["limits"])
    # WebP's canvas is allocated on opening; Pillow refuses over twice this number of pixels before.
    Image.MAX_IMAGE_PIXELS = (limits.max_pixels + 1) // 2
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread would take address space
    # Freeing a block this large raises glibc's mmap threshold (mallopt(3), M_MMAP_THRESHOLD), so that
    # memory is reused: page faults are a third of the time of a small image.
    bytearray(24 << 20)
    _restrict(options["settings"]["cpu_seconds"], options["settings"]["memory_bytes"])
    prefix = sys.stdin.buffer.read(REQUEST.size)
    if prefix:  # else the parent is gone
        is_mask, length = REQUEST.unpack(prefix)
        body = sys.stdin.buffer.read(length)
        sys.stdout.buffer.writelines(answer(body, limits, "mask" if is_mask else "picture"))
        sys.stdout.buffer.flush()
    os._exit(0)  # nothing to clean up


def _restrict(cpu_seconds: int, memory_bytes: int) -> None:  # pragma: no cover  # as `main`
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux; elsewhere the address space cannot be limited
        pages = int(statm.read_text(encoding="ascii").split()[0])
        _lower(resource.RLIMIT_AS, memory_bytes + pages * resource.getpagesize())
    # Soft below hard: the soft limit ends the process by SIGXCPU, which tells why; the hard by SIGKILL.
    _lower(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)
    if not forbid_processes():
        _lower(resource.RLIMIT_NPROC, 0)  # then HEIF cannot be decoded: libde265 starts a thread
    _lower(resource.RLIMIT_NOFILE, 3)  # stdin, stdout, stderr: no file or socket can be opened


def _lower(limit: int, soft: int, hard: int | None = None) -> None:  # pragma: no cover  # as `main`
    inherited = resource.getrlimit(limit)[1]  # cannot be raised
    bound = sys.maxsize if inherited == resource.RLIM_INFINITY else inherited
    resource.setrlimit(limit, (min(soft, bound), min(hard or soft, bound)))


def answer(
    body: bytes, limits: decode.Limits, kind: Kind = "picture"
) -> tuple[bytes, bytes, bytes]:
    """Decode `body` and return the three parts of the answer; a refusal has no pixels."""
    try:
        decoded = decode.decode(body, limits, kind)
    except errors.BadInput as error:
        text = f"{error.code}\n{error.message}".encode("ascii")
        return HEADER.pack(len(text), 0, 0, 0, 0), text, b""
    text = "\n".join((decoded.format, *decoded.notes)).encode("ascii")
    sizes = (*decoded.image.size, decoded.width_px, decoded.height_px)
    return HEADER.pack(len(text), *sizes), text, decoded.image.tobytes()


def receive(read: Read, limits: decode.Limits, kind: Kind = "picture") -> decode.Decoded:
    """Read a child's answer; believe nothing that `limits` do not allow, since it may be compromised.

    `read(count)` returns exactly that many bytes or raises.

    Raises:
        BadInput: the child refused the image, or its answer is malformed (`BrokenImage`).
    """
    length, *sizes = HEADER.unpack(read(HEADER.size))
    text = read(min(length, _MAX_TEXT_BYTES)).decode("ascii", "replace")
    word, *lines = text.split("\n")
    if length > _MAX_TEXT_BYTES or not "".join(lines).isprintable():
        raise _malformed()
    if word in _REFUSALS:
        raise _REFUSALS[word](" ".join(lines))
    width_px, height_px, own_width_px, own_height_px = sizes
    if (
        word not in formats.FORMATS
        or not 0 < width_px * height_px <= limits.working_pixels
        or not 0 < own_width_px * own_height_px <= limits.max_pixels_of(word)
    ):
        raise _malformed()
    image = _receive_pixels(read, MODES[kind], (width_px, height_px))
    return decode.Decoded(image, own_width_px, own_height_px, word, tuple(lines))


def _receive_pixels(read: Read, mode: str, size_px: tuple[int, int]) -> Image.Image:
    """Read an image in strips, so that its bytes and its image are not both held."""
    width_px, height_px = size_px
    image = Image.new(mode, size_px)
    row_bytes = len(mode) * width_px
    strip_px = max(_STRIP_BYTES // row_bytes, 1)
    for top_px in range(0, height_px, strip_px):
        rows = min(strip_px, height_px - top_px)
        strip = Image.frombytes(mode, (width_px, rows), read(row_bytes * rows))
        image.paste(strip, (0, top_px))
    return image


def _malformed() -> errors.BrokenImage:
    return errors.BrokenImage("the image could not be decoded")
