"""The decoder's child processes, seen from outside."""

import asyncio
import os
import sys
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
            if b"sandbox_child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def limits_of(pid: int) -> dict[str, list[str]]:
    """The soft and hard limits of a process, by name; none once it is gone."""
    with suppress(OSError):
        rows = Path(f"/proc/{pid}/limits").read_text().splitlines()
        return {row[:25].strip(): row[25:].split()[:2] for row in rows}
    return {}


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


async def idle(count: int = 2) -> set[int]:
    """Wait until `count` children are ready for an image, and return their process ids."""
    ready: set[int] = set()

    def are_ready() -> bool:
        ready.clear()  # restricting its open files is the last that a child does before it waits
        ready.update(p for p in decoders() if limits_of(p).get("Max open files") == ["3", "3"])
        return len(ready) == count == len(decoders())

    await until(are_ready)
    return ready


def running(script: str) -> Callable[[list[str]], sandbox.Child]:
    """Start a script in place of the decoder; `w` writes to its answer."""
    start = "import os, struct, time; w = lambda data: os.write(1, data);"
    return lambda _command: sandbox.start_child([sys.executable, "-c", start + script])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
