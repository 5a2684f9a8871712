"""How many workers for my load: simulate a fleet, print its latencies and its cost an edit.

PYTHONPATH=src:tests python tests/bench/fleet.py --per-hour 1000 --target-s 60
PYTHONPATH=src:tests python tests/bench/fleet.py --per-hour 1000 --least 0 --most 20 --bursts 20
PYTHONPATH=src:tests python tests/bench/fleet.py --table --plot tests/bench/figures/fleet.svg

The default service time is that of 30 steps with guidance at 1024x1024 on an H100 (18.84 s,
RESULTS.md), and 0.1 s for what the model waits for. Prices are Runpod's of 2026-11; the cold start is an
assumption: measure yours by `retouch_start_seconds`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from support.load.fleet import (
    Fleet,
    Load,
    Outcome,
    find_workers,
    read_service_s,
    simulate,
    summarize,
)

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
UTILISATIONS = (0.5, 0.7, 0.8, 0.9, 0.95)
HOURLY = (10, 100, 1_000, 10_000, 100_000)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--per-hour", type=float, default=1000.0, help="edits an hour (default: 1000)")
    add("--service-s", type=read_service_s, default=(18.94,), help="seconds, such as 19x3,5")
    add("--bursts", type=int, default=0, help="edits that come at once; 0: Poisson")
    add("--target-s", type=float, help="find the workers with which 99 %% take at most this")
    add("--least", type=int, default=0, help="workers that always run (default: 0)")
    add("--most", type=int, default=10, help="workers at most (default: 10)")
    add("--cold-start-s", type=float, default=60.0, help="until a new worker edits (default: 60)")
    add("--idle-s", type=float, default=5.0, help="until an idle one stops (default: 5)")
    add("--per-worker", type=float, default=1.0, help="edits inside a worker (default: 1)")
    add("--queue", type=int, default=1_000_000, help="edits that may wait")
    add("--flex-price", type=float, default=0.00116, help="dollars a second (default: an H100)")
    add("--active-price", type=float, default=0.00116, help="of workers that always run")
    add("--edits", type=int, default=50_000, help="edits to simulate (default: 50000)")
    add("--seed", type=int, default=0)
    add("--table", action="store_true", help="print workers by load and target")
    add("--plot", type=Path, help="write p99 by utilisation for 1 to 1,000 workers, as SVG")
    return parser.parse_args(arguments)


def build_load(options: argparse.Namespace, per_hour: float) -> Load:
    kind = "bursts" if options.bursts else "poisson"
    return Load(per_hour / 3600, options.service_s, kind, max(options.bursts, 1))


def print_table(options: argparse.Namespace) -> None:
    """Workers that always run, by edits an hour, for a p99 of 1.5, 2 and 4 service times."""
    service_s = max(options.service_s)
    targets_s = [service_s * times for times in (1.5, 2, 4)]
    print("| edits an hour |", " | ".join(f"p99 {one:.0f} s" for one in targets_s), "|")  # noqa: T201
    print("| --- " * (1 + len(targets_s)) + "|")  # noqa: T201
    for per_hour in HOURLY:
        load = build_load(options, per_hour)
        found = [find_workers(load, target_s=one, edits=options.edits) for one in targets_s]
        print(f"| {per_hour:,} |", " | ".join(map(str, found)), "|")  # noqa: T201


def draw(options: argparse.Namespace, target: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "retouch"
    figure, axes = plt.subplots(figsize=(7, 4), constrained_layout=True)
    mean_s = sum(options.service_s) / len(options.service_s)
    for busy in UTILISATIONS:
        p99_s = [
            simulate(
                Fleet(workers, workers),
                Load(busy * workers / mean_s, options.service_s),
                edits=max(options.edits, 100 * workers),
                seed=options.seed,
            ).percentile(99)
            for workers in SIZES
        ]
        print(f"{busy:.0%}:", *(f"{one:.1f}" for one in p99_s))  # noqa: T201
        axes.plot(SIZES, p99_s, marker="o", markersize=3, label=f"{busy:.0%} busy")
    axes.set(xscale="log", yscale="log", xlabel="workers", ylabel="p99 of an edit, seconds")
    axes.axhline(mean_s, color="gray", linewidth=0.8, linestyle=":")
    axes.legend(fontsize=8)
    figure.savefig(target, metadata={"Date": None})


def run(options: argparse.Namespace, workers: int) -> Outcome:
    fleet = Fleet(
        least=options.least,
        most=max(workers, options.least),
        cold_start_s=options.cold_start_s,
        idle_s=options.idle_s,
        per_worker=options.per_worker,
        queue=options.queue,
        active_price=options.active_price,
        flex_price=options.flex_price,
    )
    load = build_load(options, options.per_hour)
    return simulate(fleet, load, edits=options.edits, seed=options.seed)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.table:
        print_table(options)
    if options.plot:
        draw(options, options.plot)
    if options.table or options.plot:
        return
    if options.target_s:
        load = build_load(options, options.per_hour)
        workers = find_workers(load, target_s=options.target_s, edits=options.edits)
        print(f"{workers} workers that always run take 99 % of edits within {options.target_s:g} s")  # noqa: T201
        options.least = workers
        options.most = workers
    print(*summarize([(options.most, run(options, options.most))]), sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
