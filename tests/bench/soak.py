"""Soak test: thousands of small edits through the running service, after which it must hold no more memory.

`bentoml serve` with the demo model takes edits of 64x64 at one step over a few kept connections: from
the cache, from new URLs, from data: URLs and as streams; every tenth request beside them is wrong, names
a source that cannot be had, or hangs up. At every checkpoint the requests under way end, and what
supervisor, worker and decoders hold is counted. Between the first checkpoint that counts (--from) and
the last, the resident memory of supervisor and worker may grow by under 2 %, and neither descriptors
nor processes may. Threads may not either, but for pools of the worker that start a thread when none is
idle: with them it has 25 at most. The exit status is 1 if one grew, or if any answer was wrong.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import httpx
from support.load.requests import KEYS, Hosts, Requests, serve_picture
from support.load.soaking import Checkpoint, Soak, deliver, judge, requests, settle
from support.processes.process_stats import ROLES, Watch, watching
from support.servers.bentoml_service import serving
from support.servers.origin import Origin


async def run(options: argparse.Namespace, folder: Path) -> tuple[Soak, Watch]:
    soak = Soak()
    async with Origin(serve_picture) as origin:
        hosts = Hosts(origin.port)
        settings = {
            "MODEL_ID": "",
            "ALLOWED_SOURCE_HOSTS": hosts.allowed,
            "API_KEYS": ",".join(KEYS.values()),
            "SOURCE_TIMEOUT_SECONDS": "3",
            **dict(pair.split("=", 1) for pair in options.set),
        }
        asks = requests(Requests(hosts, side_px=64, steps=1))
        with (
            serving(folder, settings) as service,
            watching(service.pid, every_s=1.0) as watch,
        ):
            limits = httpx.Limits(max_keepalive_connections=options.connections)
            client = httpx.AsyncClient(base_url=service.url, limits=limits, trust_env=False)
            async with client:
                began_s = time.monotonic()
                for edits in range(options.every, options.edits + 1, options.every):
                    await deliver(client, asks, soak, edits=edits, connections=options.connections)
                    held = await settle(service.pid)
                    at_s = time.monotonic() - began_s
                    soak.checkpoints.append(Checkpoint(soak.delivered, at_s, held))
                    sys.stderr.write(describe(soak.checkpoints[-1]) + "\n")
    return soak, watch


def describe(checkpoint: Checkpoint) -> str:
    parts = [f"{checkpoint.edits:>6} edits {checkpoint.at_s:>6.0f} s"]
    for role in ROLES:
        held = checkpoint.held[role]
        parts.append(
            f"{role} {held.processes}: {held.rss_bytes / 2**20:.1f} MiB,"
            f" {held.descriptors} descriptors, {held.threads} threads"
        )
    return " | ".join(parts)


def tabulate(soak: Soak, first_edits: int) -> str:
    counted = [point for point in soak.checkpoints if point.edits >= first_edits]
    first, last = counted[0], counted[-1]
    lines = [
        f"{last.edits} edits in {last.at_s:.0f} s",
        f"{'':<26}{'edit ' + str(first.edits):>14}{'edit ' + str(last.edits):>14}{'change':>10}",
    ]
    mib = [point.rss_bytes / 2**20 for point in (first, last)]
    lines.append(f"{'MiB, service':<26}{mib[0]:>14.1f}{mib[1]:>14.1f}{mib[1] / mib[0] - 1:>10.2%}")
    for role in ROLES:
        for what, unit in (("rss_bytes", 2**20), ("descriptors", 1), ("threads", 1)):
            values = [getattr(point.held[role], what) / unit for point in (first, last)]
            name = f"{'MiB' if unit > 1 else what}, {role}"
            lines.append(
                f"{name:<26}{values[0]:>14.4g}{values[1]:>14.4g}{values[1] - values[0]:>+10.4g}"
            )
    lines += [f"{name:<40}{times:>6}" for name, times in sorted(soak.ends.items())]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edits", type=int, default=5000, help="default: 5000")
    parser.add_argument("--from", type=int, default=500, dest="first", help="default: 500")
    parser.add_argument("--every", type=int, default=250, help="edits a checkpoint (default: 250)")
    parser.add_argument("--connections", type=int, default=4, help="default: 4")
    parser.add_argument("--record", type=Path, help="write what was measured here, as JSON")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        soak, watch = asyncio.run(run(options, Path(folder)))
    if options.record:
        record = {"checkpoints": [asdict(c) for c in soak.checkpoints], "samples": watch.samples}
        options.record.write_text(json.dumps(record))
    found = soak.faults + judge(soak, options.first)
    sys.stdout.write(tabulate(soak, options.first) + "".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
