"""Run a program's attacks and print whether each bar held."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Row = tuple[str, str, str, bool]
"""What was attacked, the bar, what was seen, and whether the bar held."""


def run_attacks(
    attacks: Mapping[str, Callable[[Any], Awaitable[list[Row]]]], asked: argparse.Namespace
) -> int:
    """Run the attacks that were asked for, or all; return the exit status: 1 if a bar was missed."""
    rows = [row for name in asked.attacks or attacks for row in asyncio.run(attacks[name](asked))]
    for name, bar, told, held in rows:
        print(f"{'held' if held else 'MISSED'} | {name} | {bar} | {told}")  # noqa: T201
    return 0 if all(held for *_, held in rows) else 1
