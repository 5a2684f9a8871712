"""Fetch one URL of 127.0.0.1 in a process of its own, and measure the memory it takes.

`python tests/support/attacks/lone_fetch.py URL MAX_BYTES TIMES LOOP` prints one JSON object; `measure` runs it.
"""

import asyncio
import json
import os
import sys
import tracemalloc
from pathlib import Path

import uvicorn

from retouch.errors import EditError
from retouch.net.download import Downloader
from retouch.net.limits import FetchLimits
from retouch.net.url import parse_url
from support.servers.origin import fetch_alone

ROOT = Path(__file__).parents[3]
GLIBC = {"MALLOC_MMAP_THRESHOLD_": "1048576"}


async def measure(
    url: str, *, max_bytes: int, times: int = 3, loop: str = "auto"
) -> dict[str, int]:
    """Return the bytes beyond what the process held before: `traced` by Python, `resident` by the kernel.

    `loop` is uvicorn's name of an event loop (auto: uvloop if installed). glibc gets the image's setting, without which it keeps freed memory.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, url, str(max_bytes), str(times), loop),
        env={**os.environ, **GLIBC, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}"},
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await asyncio.wait_for(child.communicate(), 60)
    held: dict[str, int] = json.loads(told)
    return held


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise LookupError(field)


def _start_peak() -> int:
    """Reset VmHWM to VmRSS and return it."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


async def _fetch(url: str, max_bytes: int, times: int) -> dict[str, int]:
    parsed = parse_url(url)
    allowed = frozenset({parsed.host_port})
    limits = FetchLimits(max_bytes=max_bytes, allowed_hosts=allowed)
    fetcher = Downloader(limits)

    async def once() -> int:
        try:
            return len((await fetch_alone(fetcher, parsed, timeout_s=20)).body or b"")
        except EditError:
            return -1

    small = parse_url(f"http://{parsed.host_port}/small")
    await fetch_alone(fetcher, small, timeout_s=20)  # imports and set-up that happen once
    before = _start_peak()
    for _ in range(times):
        size = await once()
    resident = _resident("VmHWM") - before
    tracemalloc.start()
    await once()
    traced = tracemalloc.get_traced_memory()[1]
    return {"size": size, "resident": resident, "traced": traced}


if __name__ == "__main__":
    url, max_bytes, times, loop = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvicorn.Config("", loop=loop).get_loop_factory()) as runner:
        print(json.dumps(runner.run(_fetch(url, int(max_bytes), int(times)))))  # noqa: T201
