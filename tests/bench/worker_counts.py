"""Counts the Runpod worker's properties over many runs, on the SDK's real loop and its local server.

PYTHONPATH=src:tests python tests/bench/worker_counts.py --help
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.processes import demo_worker_runs, worker_runs


def _fuzz(tries: int) -> str:
    loop = worker_runs.run_fuzz_on_the_loop(tries)
    local = worker_runs.run_fuzz_on_the_local_server(tries)
    told = [
        f"{name}: {tally.succeeded} succeeded, {sum(tally.failed.values())} failed as {len(tally.failed)} codes"
        for name, tally in (("loop", loop), ("local server", local))
    ]
    return "; ".join(told)


def _progress(tries: int) -> str:
    sent = worker_runs.run_progress(tries)
    return f"{sent} progress messages, none after its result"


def _cancels(tries: int) -> str:
    free_ms = [1000 * free_s for free_s in worker_runs.run_cancels(tries)]
    return (
        f"model free after {statistics.median(free_ms):.0f} ms (median), {max(free_ms):.0f} ms (most) "
        f"of 50 ms steps; no overlap"
    )


def _sigterms(tries: int) -> str:
    worker_runs.run_sigterms(tries)
    return "each job delivered, each exit 0"


RUNS: dict[str, Callable[[int], str]] = {
    "fuzz": _fuzz,
    "progress": _progress,
    "cancels": _cancels,
    "sigterms": _sigterms,
    "demo": demo_worker_runs.run_with_demo,
}


def main() -> None:
    """Run the chosen programs and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fuzz", type=int, default=1000, help="inputs, on the loop and locally")
    parser.add_argument("--progress", type=int, default=200, help="jobs with progress")
    parser.add_argument("--cancels", type=int, default=50, help="jobs stopped in the middle")
    parser.add_argument("--sigterms", type=int, default=20, help="workers ended in mid-job")
    parser.add_argument("--demo", type=int, default=5, help="of each, with the demo model")
    asked = vars(parser.parse_args())
    for name, run in RUNS.items():
        tries = asked[name]
        if tries:
            began = time.monotonic()
            told = run(tries)
            print(f"{name} {tries}: {told} ({time.monotonic() - began:.0f} s)", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
