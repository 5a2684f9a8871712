"""Draw what load.py and soak.py recorded, as the figures of RESULTS.md.

PYTHONPATH=src:tests python tests/bench/load_plots.py load LOAD.json tests/bench/figures/load.png
PYTHONPATH=src:tests python tests/bench/load_plots.py soak SOAK.json tests/bench/figures/soak.png
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

ROLES = {"supervisor": "tab:gray", "worker": "tab:blue", "decoders": "tab:orange"}
BIN_S = 10.0
MIB = 2**20


def draw_held(axes: list[Axes], samples: list[dict[str, Any]]) -> None:
    """Memory, descriptors and threads of every role, over time."""
    at_s = [sample["at_s"] for sample in samples]
    for ax, (what, title, unit) in zip(
        axes,
        (
            ("rss_bytes", "RSS, MiB", MIB),
            ("descriptors", "descriptors", 1),
            ("threads", "threads", 1),
        ),
        strict=True,
    ):
        for role, colour in ROLES.items():
            values = [sample[role][what] / unit for sample in samples]
            ax.plot(at_s, values, color=colour, label=role, linewidth=0.8)
        ax.set_ylabel(title)
        ax.set_ylim(bottom=0)
    axes[0].legend(loc="center right", fontsize=7)


def draw_load(record: dict[str, Any], target: Path) -> None:
    attempts = record["attempts"]
    figure, axes = plt.subplots(6, 1, figsize=(9, 11), sharex=True, constrained_layout=True)
    end_s = max(each["due_s"] + each["took_s"] for each in attempts)
    edges = np.arange(0, end_s + BIN_S, BIN_S)
    due_s = [each["due_s"] for each in attempts]
    axes[0].stairs(np.histogram(due_s, edges)[0] / BIN_S, edges, color="black", label="arrived")
    for code, colour in (("success", "tab:green"), ("queue_full", "tab:red")):
        ended_s = [each["due_s"] + each["took_s"] for each in attempts if each["code"] == code]
        rate = np.histogram(ended_s, edges)[0] / BIN_S
        axes[0].stairs(rate, edges, color=colour, label=code)
    axes[0].set_ylabel("requests/s")
    axes[0].legend(loc="upper left", fontsize=7, ncols=3)
    for client, colour in (("mixed", "tab:green"), ("flood", "tab:purple"), ("calm", "tab:red")):
        found = [e for e in attempts if e["code"] == "success" and e["client"] == client]
        at_s, took_s = [e["due_s"] for e in found], [e["took_s"] for e in found]
        axes[1].plot(at_s, took_s, ".", markersize=2, color=colour, label=client)
    axes[1].set_ylabel("s to the result")
    axes[1].legend(loc="upper left", fontsize=7, ncols=3)
    moments = np.arange(0, end_s, 1.0)
    ends_s = np.sort([each["due_s"] + each["took_s"] for each in attempts])
    under_way = np.searchsorted(np.sort(due_s), moments) - np.searchsorted(ends_s, moments)
    axes[2].plot(moments, under_way, color="black", linewidth=0.8)
    axes[2].set_ylabel("under way")
    draw_held(list(axes[3:]), record["samples"])
    for name, began_s in record["began"].items():
        for ax in axes:
            ax.axvline(began_s, color="lightgray", linewidth=0.8, zorder=0)
        axes[0].annotate(name, (began_s, 1.02), xycoords=("data", "axes fraction"), fontsize=8)
    axes[-1].set_xlabel("seconds")
    figure.savefig(target, dpi=90)


def draw_soak(record: dict[str, Any], target: Path) -> None:
    figure, axes = plt.subplots(3, 1, figsize=(9, 6.5), sharex=True, constrained_layout=True)
    points = record["checkpoints"]
    edits = [point["edits"] for point in points]
    for ax, (what, title, unit) in zip(
        axes,
        (
            ("rss_bytes", "RSS, MiB", MIB),
            ("descriptors", "descriptors", 1),
            ("threads", "threads", 1),
        ),
        strict=True,
    ):
        for role, colour in ROLES.items():
            values = [point["held"][role][what] / unit for point in points]
            ax.plot(edits, values, "o-", markersize=3, color=colour, label=role)
        ax.set_ylabel(title)
        ax.set_ylim(bottom=0)
    axes[0].legend(loc="center right", fontsize=7)
    axes[-1].set_xlabel("edits delivered")
    figure.savefig(target, dpi=90)


def main() -> None:
    drawings: dict[str, Callable[[dict[str, Any], Path], None]] = {
        "load": draw_load,
        "soak": draw_soak,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=drawings)
    parser.add_argument("record", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    drawings[options.what](json.loads(options.record.read_text()), options.target)


if __name__ == "__main__":
    main()
