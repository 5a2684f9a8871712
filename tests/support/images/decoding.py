"""What the decoder's tests share: its children, seen from outside."""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from retouch.images import decode, sandbox
from support.images import samples

LIMITS = decode.Limits()
PHOTO = samples.saved(samples.photo(640, 480), "JPEG", quality=90)
COSTLY = samples.wide_webp(7000, 7000)  # 34 bytes: seconds of processor time, 0.8 GiB
PATIENCE_S = 30.0


def children() -> set[int]:
    """The processes, zombies too, whose parent is this one."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # gone in between
        if parent == os.getpid():
            found.add(int(stat.parent.name))
    return found


def decoders() -> set[int]:
    """The children that are decoders: the object store of other tests may be one of them too."""
    found = set()
    for pid in children():
        with suppress(OSError):  # gone in between
            if b"decoder_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def until(claim: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not claim():  # noqa: ASYNC110  # the kernel sends no event for this
            await asyncio.sleep(0.02)


async def idle(decoding: sandbox.Decoder) -> set[int]:
    """Wait until every spare child is ready, and return their process ids."""
    spares = decoding._spares  # noqa: SLF001  # no caller needs to know
    await until(lambda: all(spare.done() for spare in spares))
    return {spare.result()._process.pid for spare in spares}  # noqa: SLF001


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# --- what comes out --------------------------------------------------------------------------
