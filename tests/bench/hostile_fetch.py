"""Attack downloads and count: addresses, memory, deadlines, and healthy downloads beside them.

PYTHONPATH=src:tests python tests/bench/hostile_fetch.py --help

The exit status is 1 if a bar is missed. All traffic stays on 127.0.0.1.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence

from support.attacks.lone_fetch import measure
from support.attacks.report import run_attacks
from support.attacks.ssrf_matrix import Runner, Watch, WebhookRunner, run_matrix
from support.servers.origin import (
    Exchange,
    Internet,
    Names,
    Origin,
    Script,
    answer,
    by_path,
    internet,
    plain_server,
    reset_after,
    say,
)

from retouch.errors import EditError
from retouch.net.connect import Connector
from retouch.net.download import Downloader
from retouch.net.limits import FetchLimits

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MIB = 1 << 20
READ_AHEAD = {"asyncio": 1 << 20, "uvloop": 10 << 20}
"""What a download may hold beyond the byte limit: what each event loop reads before it can pause."""
LATE_BAR_S = 0.5
DELAY_BAR = 1.1
Row = tuple[str, str, str, bool]


def say_progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)  # noqa: T201


async def attack_addresses(asked: argparse.Namespace) -> list[Row]:
    watch = Watch()
    rows = await _attack_with(Runner, watch, asked, "")
    return rows + await _attack_with(WebhookRunner, watch, asked, ", webhook")


async def _attack_with(
    kind: type[Runner], watch: Watch, asked: argparse.Namespace, what_for: str
) -> list[Row]:
    refused, public = await run_matrix(
        watch,
        seed=asked.seed,
        extra=asked.extra,
        every=asked.every,
        kind=kind,
        progress=say_progress,
    )
    rows: list[Row] = []
    tallies = [("refused", refused)]
    if kind is Runner:  # a webhook follows no redirect, also not to a public address
        tallies.append(("public", public))
    for what, tally in tallies:
        for violation in tally.violations[:20]:
            say_progress(f"VIOLATION {violation}")
        ways = ", ".join(f"{way} {number}" for way, number in sorted(tally.counts.items()))
        bar = f"{len(tally.violations)} of {tally.counts.total()} wrong"
        rows.append((f"{what} addresses{what_for}", bar, ways, not tally.violations))
    return rows


async def attack_memory(asked: argparse.Namespace) -> list[Row]:
    limit = 26_214_400
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    scripts = {
        "/small": answer(b"x"),
        "/whole": answer(bytes(limit)),
        "/no-length": answer(bytes(limit), length=-1),
        "/short": answer(bytes(limit - 1), length=limit),
        "/endless": say(OK + b"\r\n", again=bytes(65536)),
        "/chunks": say(CHUNKED, again=chunk),
        "/large-chunks": say(CHUNKED, again=b"400000\r\n" + bytes(4 * MIB) + b"\r\n"),
        "/head": say(OK + b"X-A: ", again=b"b" * 65536),
    }
    rows: list[Row] = []
    async with Origin(by_path(scripts)) as origin:
        for path, loop in itertools.product(list(scripts)[1:], READ_AHEAD):
            say_progress(f"memory {path} {loop}")
            url = f"http://127.0.0.1:{origin.port}{path}"
            held = await measure(url, max_bytes=limit, times=asked.fetches, loop=loop)
            over = {key: (held[key] - limit) / 1024 for key in ("resident", "traced")}
            told = ", ".join(f"{key} {kib:+.0f} KiB" for key, kib in over.items())
            name = f"memory of {asked.fetches} fetches, {path}, {loop}"
            fits = max(held["traced"], held["resident"]) <= limit + READ_AHEAD[loop]
            rows.append((name, "beyond the limit", told, fits))
    return rows


SLOW: dict[str, Script] = {
    "silent": say(b""),
    "head dripped": say(OK, again=b"X-A: b\r\n", every_s=0.05),
    "header dripped": say(OK + b"X-A: ", again=b"b", every_s=0.05),
    "interim answers dripped": say(b"", again=b"HTTP/1.1 102 -\r\n\r\n", every_s=0.05),
    "body dripped": say(OK + b"\r\n", again=b"x", every_s=0.05),
    "chunks, endless": say(CHUNKED, again=b"400\r\n" + bytes(1024) + b"\r\n", every_s=0.05),
    "chunk size dripped": say(CHUNKED, again=b"0", every_s=0.05),
    "trailer dripped": say(CHUNKED + b"0\r\n", again=b"X-A: b\r\n", every_s=0.05),
    "reset at once": reset_after(b""),
    "reset in the head": reset_after(OK + b"X-A"),
    "reset after the head": reset_after(OK + b"Content-Length: 20\r\n\r\n"),
    "reset in the body": reset_after(OK + b"Content-Length: 20\r\n\r\nabc"),
    "reset in a chunk": reset_after(CHUNKED + b"10\r\nabc"),
    "reset in a chunk's size": reset_after(CHUNKED + b"1"),
}


async def hold_tls(hello: bytes) -> float:
    gone = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hello)
        await reader.read()
        writer.close()
        gone.set()

    async with plain_server(accept, FetchLimits()) as net:
        took_s = await time_end(net, "https://a.example/")
        await asyncio.wait_for(gone.wait(), 2)
        return took_s


async def time_end(net: Internet, url: str, *, timeout_s: float = 1.0) -> float:
    """Return the seconds until the fetch fails."""
    began_s = time.monotonic()
    try:
        await net.get(url, timeout_s=timeout_s)
    except EditError:
        return time.monotonic() - began_s
    return float("inf")


async def attack_deadlines(_: argparse.Namespace) -> list[Row]:
    took_s: dict[str, float] = {}
    for name, script in SLOW.items():
        say_progress(f"deadline: {name}")
        async with internet({"a.example": script}, limits=FetchLimits()) as (net, _origins):
            took_s[name] = await time_end(net, "http://a.example/")
    took_s["TLS, silent"] = await hold_tls(b"")
    took_s["TLS, half a record"] = await hold_tls(b"\x16\x03\x03\x40\x00\x02")
    bar = "limit 1 s"
    return [(name, bar, f"{s:.2f} s", s < 1 + LATE_BAR_S) for name, s in took_s.items()]


async def late(exchange: Exchange) -> None:
    await asyncio.sleep(0.2)
    await answer(bytes(256 << 10))(exchange)


async def median_s(net: Internet, times: int) -> float:
    took_s = []
    for _ in range(times):
        began_s = time.monotonic()
        await net.get("http://healthy.example/")
        took_s.append(time.monotonic() - began_s)
    return statistics.median(took_s)


def compare(name: str, alone_s: float, among_s: float) -> Row:
    told = f"{1000 * alone_s:.1f} ms alone, {1000 * among_s:.1f} ms among them"
    return (name, f"{among_s / alone_s - 1:+.1%}", told, among_s < alone_s * DELAY_BAR)


async def attack_neighbours(asked: argparse.Namespace) -> list[Row]:
    scripts = {f"drip{n}.example": SLOW["body dripped"] for n in range(asked.drips)}
    scripts["healthy.example"] = late
    say_progress(f"{asked.drips} dripping origins")
    async with internet(scripts, limits=FetchLimits()) as (net, origins):
        alone_s = await median_s(net, asked.healthy)
        drips = [asyncio.create_task(net.get(f"http://{host}/")) for host in list(scripts)[:-1]]
        while not all(origin.requests for origin in origins.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        among_s = await median_s(net, asked.healthy)
        still = sum(not drip.done() for drip in drips)
        for drip in drips:
            drip.cancel()
        await asyncio.gather(*drips, return_exceptions=True)
    return [compare(f"beside {still} dripping origins", alone_s, among_s)]


async def attack_lookups(asked: argparse.Namespace) -> list[Row]:
    """Healthy fetches beside look-ups that hang after their fetch has ended."""
    over = threading.Event()
    hanging: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        if host.startswith("hang"):
            hanging.append(host)
            over.wait()
        return names(host, port)

    say_progress(f"{asked.lookups} hanging look-ups")
    async with internet({"healthy.example": late}, limits=FetchLimits()) as (inner, _):
        names: Names = inner.names
        fetcher = Downloader(
            FetchLimits(), Connector(FetchLimits(), resolve=resolve, network=inner.detour)
        )
        net = Internet(fetcher, names, inner.detour)
        alone_s = await median_s(net, asked.healthy)
        hosts = [f"http://hang{n}.example/" for n in range(asked.lookups)]
        ends = [time_end(net, host) for host in hosts]
        longest_s = max(await asyncio.gather(*ends))
        among_s = await median_s(net, asked.healthy)
        over.set()
    row = compare(f"beside {len(hanging)} hanging look-ups", alone_s, among_s)
    told = f"{longest_s:.2f} s"
    return [row, ("fetches that hang there", "limit 1 s", told, longest_s < 1 + LATE_BAR_S)]


ATTACKS: dict[str, Callable[[argparse.Namespace], Awaitable[list[Row]]]] = {
    "addresses": attack_addresses,
    "memory": attack_memory,
    "deadlines": attack_deadlines,
    "neighbours": attack_neighbours,
    "lookups": attack_lookups,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = f"of {', '.join(ATTACKS)}; all if none is named"
    parser.add_argument("attacks", nargs="*", choices=[[], *ATTACKS], metavar="ATTACK", help=told)
    parser.add_argument("--seed", type=int, default=1, help="of the random addresses")
    parser.add_argument("--extra", type=int, default=1, help="random addresses a network")
    parser.add_argument("--every", type=int, default=1, help="run every so many cases only")
    parser.add_argument("--fetches", type=int, default=10, help="fetches in a row, for memory")
    parser.add_argument("--drips", type=int, default=100, help="dripping origins")
    parser.add_argument("--lookups", type=int, default=400, help="names that hang")
    parser.add_argument("--healthy", type=int, default=15, help="healthy fetches timed, each way")
    return run_attacks(ATTACKS, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
