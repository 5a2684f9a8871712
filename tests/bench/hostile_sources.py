"""Attack the loading of sources and count: data: URLs of every spelling, slow origins, a burst from one host.

PYTHONPATH=src:tests python tests/bench/hostile_sources.py --help

The exit status is 1 if a bar is missed. All traffic stays on 127.0.0.1; the engine is a fake.
"""

import argparse
import asyncio
import base64
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.attacks.report import run_attacks
from support.fakes import PNG, REQUEST, FakeOrigin, House, build_test_sources
from support.servers.origin import Exchange, answer, internet, say

from retouch.errors import EditError
from retouch.net.limits import FetchLimits

MIB = 1 << 20
MEMORY_BAR = 200 * MIB
BLOCKED_BAR_S = 0.5
Row = tuple[str, str, str, bool]


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def reset_peak() -> int:
    """Reset VmHWM to VmRSS and return it."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


@contextlib.asynccontextmanager
async def watch_loop() -> Any:
    """Yield a list whose last entry is the longest time that the event loop was blocked."""
    worst_s = [0.0]

    async def tick() -> None:
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(0.01)
            worst_s[0] = max(worst_s[0], time.monotonic() - began_s - 0.01)

    ticking = asyncio.create_task(tick())
    yield worst_s
    ticking.cancel()


async def attack_data_urls(_: argparse.Namespace) -> list[Row]:
    """Load one data: URL of 33 MiB in each spelling."""
    spellings = {
        "percent-encoded": "data:," + "%41" * (11 * MIB),
        "percent-encoded base64": "data:;base64," + "%41" * (11 * MIB),
        "base64 in lines of 2": "data:;base64," + "AA\n" * (11 * MIB),
        "base64 in lines of 4": "data:;base64," + "AAAA\r\n" * (5 * MIB),
        "UTF-8": "data:," + "%41é" * (6 * MIB),
        "plain base64": "data:;base64," + "A" * (33 * MIB),
    }
    sources = build_test_sources(FakeOrigin(), House().store)
    rows: list[Row] = []
    for name, text in spellings.items():
        before, began_s = reset_peak(), time.monotonic()
        async with watch_loop() as worst_s:
            try:
                await sources.load(text, timeout_s=60)
                told = "decoded"
            except EditError as error:
                told = error.code
        took_s, more = time.monotonic() - began_s, resident("VmHWM") - before
        told = f"{told}, {more / MIB:+.0f} MiB, {took_s:.1f} s, loop blocked {worst_s[0]:.2f} s"
        rows.append(
            (f"data: {name}", "33 MiB", told, more < MEMORY_BAR and worst_s[0] < BLOCKED_BAR_S)
        )
    sources.close()
    return rows


def build_house(fetch: Any) -> House:
    """Build an editor on real downloads whose edits take 0.2 s."""
    house = House(origin=SimpleNamespace(fetch=fetch))  # type: ignore[arg-type]
    house.engine.at_step = lambda step: time.sleep(0.2) if step == 0 else None
    return house


async def edit(house: House, url: str, number: int) -> str:
    """Run one edit; return success or the error's code."""
    request = REQUEST.model_copy(update={"image_url": url})
    try:
        await house.editor.run(request, job_id=f"job-{number}", request_id="r")
    except EditError as error:
        return error.code
    return "success"


async def attack_slow_origins(asked: argparse.Namespace) -> list[Row]:
    """An honest caller once a second, beside two dripping requests a second over 17 hosts."""
    drip = say(b"HTTP/1.1 200 OK\r\n\r\n", again=b"x", every_s=0.2)
    scripts = {f"drip{n}.example": drip for n in range(17)} | {"honest.example": answer(PNG)}
    async with internet(scripts, limits=FetchLimits()) as (net, _):
        house = build_house(net.fetcher.fetch)
        tasks: list[asyncio.Task[str]] = []
        honest: list[asyncio.Task[str]] = []
        for second in range(asked.seconds):
            for n in (2 * second, 2 * second + 1):
                url = f"http://drip{n % 17}.example/{n}"
                tasks.append(asyncio.create_task(edit(house, url, n)))
            url = f"http://honest.example/{second}"
            honest.append(asyncio.create_task(edit(house, url, 1000 + second)))
            await asyncio.sleep(1)
        counts = Counter(await asyncio.gather(*honest))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    fits = counts["success"] >= 0.9 * asked.seconds
    return [
        ("honest edits beside dripping origins", f"of {asked.seconds}", str(dict(counts)), fits)
    ]


async def attack_burst(_: argparse.Namespace) -> list[Row]:
    """33 edits at once from one host that takes 2 s each."""

    async def late(exchange: Exchange) -> None:
        await asyncio.sleep(2)
        await answer(PNG)(exchange)

    async with internet({"a.example": late}, limits=FetchLimits()) as (net, _):
        house = build_house(net.fetcher.fetch)
        edits = [edit(house, f"http://a.example/{n}", n) for n in range(33)]
        counts = Counter(await asyncio.gather(*edits))
    return [("edits from one host of 2 s", "of 33", str(dict(counts)), counts["success"] == 33)]


async def attack_inline(_: argparse.Namespace) -> list[Row]:
    """Eight valid data: URLs at once."""
    house = build_house(FakeOrigin().fetch)
    url = f"data:;base64,{base64.b64encode(PNG).decode()}"
    counts = Counter(await asyncio.gather(*(edit(house, url, n) for n in range(8))))
    return [("data: URLs at once", "of 8", str(dict(counts)), counts["success"] == 8)]


ATTACKS: dict[str, Callable[[argparse.Namespace], Awaitable[list[Row]]]] = {
    "data-urls": attack_data_urls,
    "slow-origins": attack_slow_origins,
    "burst": attack_burst,
    "inline": attack_inline,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = f"of {', '.join(ATTACKS)}; all if none is named"
    parser.add_argument("attacks", nargs="*", choices=[[], *ATTACKS], metavar="ATTACK", help=told)
    parser.add_argument("--seconds", type=int, default=50, help="of the attack by slow origins")
    return run_attacks(ATTACKS, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
