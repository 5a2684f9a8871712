"""Holds the log of a mixed load to its levels: ERROR for faults of the service, and for nothing else.

PYTHONPATH=src:tests python tests/bench/mixed_log.py --minutes 60

`bentoml serve` with the demo model takes small edits over a few connections: good ones, callers that are
wrong or hang up, and origins that refuse, fail, break HTTP or never answer. Between them are requests that
meet a fault planted inside the service. The exit status is 1 if a planted fault has not exactly one ERROR
line, if there is any other ERROR line, or if an answer was wrong.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from support.load.answers import Attempt, send
from support.load.faults import failing, plant, planted, serve_failing
from support.load.requests import KEYS, Ask, Hosts, Requests
from support.servers.bentoml_service import Service
from support.servers.origin import Origin

KINDS = ("cached", "wrong", "new", "failing", "data", "unreachable", "stream", "failing", "hang-up")
ROUNDS_A_PLANT = 5
MOST_SHOWN = 25
START_S = 600.0


def requests(make: Requests) -> Iterator[Ask]:
    """Yield every kind in turn, and after each `ROUNDS_A_PLANT` rounds a planted fault."""
    for number in count():
        turn, place = divmod(number, len(KINDS))
        kind = KINDS[place]
        yield (
            failing(make, number, 2 * turn + place // 5)
            if kind == "failing"
            else make.make(number, kind, turn)
        )
        if place == len(KINDS) - 1 and turn % ROUNDS_A_PLANT == 0:
            yield planted(make, turn // ROUNDS_A_PLANT)


async def load(options: argparse.Namespace, service: Service, asks: Iterator[Ask]) -> list[Attempt]:
    """Send requests until the time is over; return their outcomes."""
    began_s = time.monotonic()
    attempts: list[Attempt] = []
    limits = httpx.Limits(max_keepalive_connections=options.connections)
    client = httpx.AsyncClient(base_url=service.url, limits=limits, trust_env=False)

    async def connection() -> None:
        while (due_s := time.monotonic() - began_s) < options.minutes * 60:
            attempts.append(
                await send(client, next(asks), phase="mixed", due_s=due_s, began_s=began_s)
            )
            await asyncio.sleep(options.pause_s)

    async with client:
        await asyncio.gather(*(connection() for _ in range(options.connections)))
    return attempts


async def run(
    options: argparse.Namespace, folder: Path
) -> tuple[list[Attempt], list[dict[str, Any]]]:
    """Run the load; return the outcomes and the lines of the log."""
    async with Origin(serve_failing) as origin:
        hosts = Hosts(origin.port)
        settings = {
            "MODEL_ID": "",
            "ALLOWED_SOURCE_HOSTS": hosts.allowed,
            "API_KEYS": ",".join(KEYS.values()),
            "SOURCE_TIMEOUT_SECONDS": "3",
        }
        service = Service(folder, settings)
        plant(folder)
        service.start()
        try:
            await asyncio.to_thread(wait_until_ready, service)
            asks = requests(Requests(hosts, side_px=64, steps=1))
            attempts = await load(options, service, asks)
            await asyncio.sleep(1)  # until the last requests are logged
        finally:
            await asyncio.to_thread(service.stop)
    return attempts, [read(line) for line in service.output.splitlines()]


def wait_until_ready(service: Service) -> None:
    """Wait longer than tests do: the machine may be busy."""
    give_up_at_s = time.monotonic() + START_S
    while time.monotonic() < give_up_at_s:
        with suppress(httpx.TransportError):
            if service.client.get("/readyz").status_code == httpx.codes.OK:
                return
        time.sleep(1)
    raise TimeoutError(service.output[-3000:])


def read(line: str) -> dict[str, Any]:
    """Return a log line's fields; a line that is not JSON counts as an error."""
    try:
        fields: dict[str, Any] = json.loads(line)
    except ValueError:
        return {"level": "ERROR", "message": "not JSON", "reason": line}
    return fields


def judge(attempts: list[Attempt], lines: list[dict[str, Any]]) -> list[str]:
    """Return everything wrong with the answers and the log."""
    errors = [line for line in lines if line["level"] in ("ERROR", "CRITICAL")]
    by_request = Counter(line.get("requestId") for line in errors)
    wanted = {one.id for one in attempts if one.kind.startswith("planted")}
    found = [f"request {one.id} ({one.kind}): {fault}" for one in attempts for fault in one.faults]
    found += [
        f"planted fault {name} has {by_request[name]} ERROR lines"
        for name in sorted(wanted)
        if by_request[name] != 1
    ]
    found += [
        f"{line['level']} {line['message']} {line.get('code', '')}: {line.get('reason', '')}"
        for line in errors
        if line.get("requestId") not in wanted
    ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="default: 60")
    parser.add_argument("--connections", type=int, default=4, help="default: 4")
    parser.add_argument(
        "--pause-s", type=float, default=0.1, help="between requests (default: 0.1)"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        attempts, lines = asyncio.run(run(options, Path(folder)))
    found = judge(attempts, lines)
    ends = Counter(f"{one.kind}: {one.code or one.end}" for one in attempts)
    levels = Counter(line["level"] for line in lines)
    report = [f"{len(attempts)} requests in {options.minutes:g} minutes, {len(lines)} log lines"]
    report += [f"{name:<48}{times:>6}" for name, times in sorted(ends.items())]
    report += [f"level {name:<42}{times:>6}" for name, times in sorted(levels.items())]
    report += [f"{times:>6} x {text}" for text, times in Counter(found).most_common(MOST_SHOWN)]
    sys.stdout.write("\n".join([*report, f"{len(found)} faults"]) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
