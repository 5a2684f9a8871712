"""Load test: requests of every kind arrive at the running service without waiting for one another.

`bentoml serve` with the demo model (one thread for it) is first measured with some requests always
waiting; then requests arrive by a Poisson process at 0.6, 1 and 2 times what came out: sources from the
cache, from new URLs and from data: URLs, event streams, clients that hang up, wrong requests, and sources
that cannot be had. In `flood` one client floods (2 times what comes out) beside one that asks for a tenth.
Of those refused every fourth, and the one beside the flood always, comes back after `Retry-After`.

Every request must get exactly one answer, which is its own: by request id, seed, size and source, and by
the picture, which carries its source's number; job ids are unique and each has one result in the store.
The exit status is 1 if any is lost, answered twice or given another's, or anything is left under way.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import httpx
from support.load import tables
from support.load.audit import audit, read_log, read_store
from support.load.phases import Load, plan
from support.load.requests import CACHED_URLS, KEYS, Hosts, Requests, serve_picture
from support.processes.process_stats import Watch, watching
from support.servers.bentoml_service import Service, serving
from support.servers.origin import Origin

PHASES = ("below", "at", "above", "flood", "after")
CALIBRATING_PART = 0.05
PROGRESS_S = 20.0


async def tell_progress(load: Load) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        ends = Counter(each.code or each.end for each in load.attempts)
        told = ", ".join(f"{times} {code}" for code, times in ends.most_common(4))
        sys.stderr.write(
            f"{load.now_s:5.0f} s {[*load.began][-1]:<12} {load.under_way} under way; {told}\n"
        )


async def drive(load: Load, options: argparse.Namespace) -> float:
    """Run every phase; return the measured capacity."""
    total_s = options.minutes * 60
    telling = asyncio.create_task(tell_progress(load))
    capacity_per_s = await load.calibrate(CALIBRATING_PART * total_s)
    sys.stderr.write(f"{capacity_per_s:.2f} edits a second come out\n")
    left_s = (1 - CALIBRATING_PART) * total_s
    for phase in plan(capacity_per_s, total_s=left_s, names=tuple(options.phases.split(","))):
        await load.run(phase)
    await load.drain()
    telling.cancel()
    return capacity_per_s


def refetched(origin: Origin) -> list[str]:
    """Return the URLs that the service downloaded more than once although it could cache them."""
    targets = Counter(head.split(b" ", 2)[1].decode() for head in origin.requests)
    cached = {target: times for target, times in targets.items() if target.startswith("/cached/")}
    found = [f"{target} was fetched {times} times" for target, times in cached.items() if times > 1]
    return found + [f"{len(cached)} cached URLs"] * (len(cached) > CACHED_URLS)


async def inside(service: Service) -> float:
    """Return the edits that the service counts as running, after time to reach 0."""
    async with httpx.AsyncClient(base_url=service.url, trust_env=False) as client:
        with suppress(TimeoutError):
            async with asyncio.timeout(10):
                while True:
                    page = await client.get("/metrics", headers={"X-API-Key": KEYS["mixed"]})
                    line = next(
                        line
                        for line in page.text.splitlines()
                        if line.startswith("retouch_edits_inside ")
                    )
                    if not float(line.split()[1]):
                        return 0.0
                    await asyncio.sleep(0.2)
    return float(line.split()[1])


async def run(options: argparse.Namespace, folder: Path) -> tuple[Load, Watch, float, list[str]]:
    async with Origin(serve_picture) as origin:
        hosts = Hosts(origin.port)
        settings = {
            "MODEL_ID": "",
            "ALLOWED_SOURCE_HOSTS": hosts.allowed,
            "API_KEYS": ",".join(KEYS.values()),
            "SOURCE_TIMEOUT_SECONDS": "3",
        }
        requests = Requests(hosts, side_px=options.size, steps=options.steps)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        with serving(folder, settings) as service, watching(service.pid, every_s=1.0) as watch:
            async with httpx.AsyncClient(
                base_url=service.url, limits=limits, trust_env=False
            ) as client:
                load = Load(client, requests, seed=options.seed)
                capacity_per_s = await drive(load, options)
            left_inside = await inside(service)
            logged = read_log(folder / "stdout")
        faults = audit(load.attempts, read_store(service.store), logged) + refetched(origin)
        if left_inside:
            faults.append(f"{left_inside:g} edits are still under way")
    return load, watch, capacity_per_s, faults


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20, help="default: 20")
    parser.add_argument("--size", type=int, default=128, help="pixels a side (default: 128)")
    parser.add_argument("--steps", type=int, default=2, help="default: 2")
    parser.add_argument("--phases", default=",".join(PHASES), help=f"default: {','.join(PHASES)}")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (default: 1)")
    parser.add_argument("--record", type=Path, help="write what was measured here, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        load, watch, capacity_per_s, faults = asyncio.run(run(options, Path(folder)))
    if options.record:
        record = {
            "began": load.began,
            "attempts": [asdict(attempt) for attempt in load.attempts],
            "samples": watch.samples,
        }
        options.record.write_text(json.dumps(record))
    ended_s = max(each.due_s for each in load.attempts)
    sys.stdout.write(
        f"{time.strftime('%Y-%m-%d')}, {options.size}x{options.size}, {options.steps} steps,"
        f" {options.minutes:g} minutes; {capacity_per_s:.2f} edits a second come out\n"
        + tables.by_phase(load.attempts, load.began, ended_s)
        + tables.honesty(load.attempts)
        + tables.patience(load.attempts)
        + tables.held(watch.samples)
        + tables.by_kind(load.attempts)
        + f"{len(faults)} faults\n"
        + "".join(f"{fault}\n" for fault in faults)
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
