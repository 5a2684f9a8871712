"""Kills workers, services and writers at random moments, and looks for anything incomplete.

PYTHONPATH=src:tests python tests/bench/killed_workers.py --help

Workers run on the SDK's real loop against a real gateway, with a model that makes noise; services are
`bentoml serve` on the local store; writers only write to it. Every job is run again in the
end and must have the same key and the same bytes. The exit status is 1 if anything is wrong.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from support.processes.killed import Tally, kill_workers
from support.processes.killed_folder import kill_services, kill_writers
from support.servers.ceph_rgw import Rgw


def say_progress(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)  # noqa: T201


def attack_workers(folder: Path, kills: int, seed: int) -> Tally:
    with Rgw(folder) as gateway:
        return kill_workers(gateway, kills=kills, seed=seed, progress=say_progress)


def attack_services(folder: Path, kills: int, seed: int) -> Tally:
    return kill_services(folder, kills=kills, seed=seed, progress=say_progress)


def attack_writers(folder: Path, kills: int, seed: int) -> Tally:
    return kill_writers(folder, kills=kills, seed=seed, progress=say_progress)


ATTACKS: dict[str, Callable[[Path, int, int], Tally]] = {
    "workers": attack_workers,
    "services": attack_services,
    "writers": attack_writers,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=200, help="default: 200")
    parser.add_argument("--services", type=int, default=30, help="default: 30")
    parser.add_argument("--writers", type=int, default=300, help="default: 300")
    parser.add_argument("--seed", type=int, default=1, help="of the moments; default: 1")
    asked = vars(parser.parse_args())
    faults = 0
    for name, attack in ATTACKS.items():
        if not asked[name]:
            continue
        began_s = time.monotonic()
        with TemporaryDirectory() as folder:
            tally = attack(Path(folder), asked[name], asked["seed"])
        counts = ", ".join(f"{what} {number}" for what, number in sorted(tally.counts.items()))
        lines = [f"FAULT {fault}" for fault in tally.faults]
        took_s = time.monotonic() - began_s
        lines.append(f"{name}: {counts}; faults {len(tally.faults)} ({took_s:.0f} s)")
        print("\n".join(lines), flush=True)  # noqa: T201
        faults += len(tally.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
