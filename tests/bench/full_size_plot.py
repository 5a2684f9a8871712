"""Draw seconds against the GPU memory allowed, from what tests/bench/full_size.py printed.

python tests/bench/full_size.py --dtype float16 | python tests/bench/full_size_plot.py tests/bench/figures/caps.svg
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

RESIDENT_GIB = 48.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", type=Path, help="the SVG to write")
    options = parser.parse_args()
    rows = [json.loads(line) for line in sys.stdin if line.startswith("{")]
    seconds = {row["row"]: row["edit30_s"] for row in rows if "edit30_s" in row}
    stock_s = seconds["stock"]
    caps = sorted(
        (RESIDENT_GIB if name == "resident" else float(name), took_s)
        for name, took_s in seconds.items()
        if name == "resident" or name.isdecimal()
    )
    mpl.rcParams["svg.hashsalt"] = "retouch"  # the same bytes for the same figures
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.axhline(stock_s, color="gray", linestyle="--", label="diffusers, 58 GiB, all resident")
    axes.plot(*zip(*caps, strict=True), marker="o", label="retouch")
    axes.set(
        xlabel="GPU memory allowed, GiB (the last: all resident)",
        ylabel="seconds, 30 steps at 1024 by 1024",
        ylim=(0, 1.15 * stock_s),
        xticks=[cap for cap, _ in caps],
    )
    axes.legend(loc="lower right")
    figure.savefig(options.figure, metadata={"Date": None})


if __name__ == "__main__":
    main()
