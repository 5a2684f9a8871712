"""The soak test: its requests, its records, and the check that nothing grew."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

import httpx

from support.load.answers import Attempt, send
from support.load.requests import Ask, Requests
from support.processes.process_stats import ROLES, Holding, measure
from support.servers.origin import until

BAR_GROWTH = 0.02
EDITS = ("cached", "new", "cached", "data", "cached", "stream", "cached", "new", "cached")
BESIDES = ("wrong", "unreachable", "hang-up")
SPARE_DECODERS = 2
POOLED_THREADS = 25
"""1 for the model, 8 for sources, 8 for results, 2 and 2 for decoders; 4 of the interpreter's."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What each role held when this many edits had been delivered and none was running."""

    edits: int
    at_s: float
    held: dict[str, Holding]

    @property
    def rss_bytes(self) -> int:
        return self.held["supervisor"].rss_bytes + self.held["worker"].rss_bytes


@dataclass(slots=True)
class Soak:
    """Progress of the run."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    job_ids: set[str] = field(default_factory=set)

    def add(self, attempt: Attempt) -> None:
        self.ends[f"{attempt.kind}: {attempt.code or attempt.end}"] += 1
        self.faults += [f"{attempt.id} ({attempt.kind}): {fault}" for fault in attempt.faults]
        if attempt.job_id in self.job_ids:
            self.faults.append(f"{attempt.id}: job {attempt.job_id} had been answered before")
        self.job_ids |= {attempt.job_id} - {""}

    @property
    def delivered(self) -> int:
        return len(self.job_ids)


def requests(make: Requests, *, first: int = 0) -> Iterator[Ask]:
    """Yield nine edits, then one failing request, repeatedly; numbered from `first` on."""
    for number in count(first):
        row, place = divmod(number - first, len(EDITS) + 1)
        if place < len(EDITS):
            yield make.make(number, EDITS[place], row)
        else:
            turn, besides = divmod(row, len(BESIDES))
            yield make.make(number, BESIDES[besides], turn)


async def deliver(
    client: httpx.AsyncClient, asks: Iterator[Ask], soak: Soak, *, edits: int, connections: int
) -> None:
    """Send requests over this many connections until `edits` are delivered and none is running."""
    began_s = time.monotonic()

    async def connection() -> None:
        while soak.delivered < edits and len(soak.faults) < 100:
            due_s = time.monotonic() - began_s
            ask = next(asks)
            soak.add(await send(client, ask, phase="soak", due_s=due_s, began_s=began_s))

    await asyncio.gather(*(connection() for _ in range(connections)))


async def settle(pid: int) -> dict[str, Holding]:
    """Return what the service holds once it is idle, its next decoders started."""
    await asyncio.sleep(1)
    with suppress(TimeoutError):
        await until(lambda: measure(pid)["decoders"].processes == SPARE_DECODERS, within_s=20)
    return measure(pid)


def judge(soak: Soak, first_edits: int) -> list[str]:
    """Return what grew between the first checkpoint that counts and the last."""
    counted = [point for point in soak.checkpoints if point.edits >= first_edits]
    first, last = counted[0], counted[-1]
    growth = last.rss_bytes / first.rss_bytes - 1
    found = [f"memory grew by {growth:.2%}"] if growth >= BAR_GROWTH else []
    for role in ROLES:
        for what in ("processes", "descriptors", "threads"):
            before, after = getattr(first.held[role], what), getattr(last.held[role], what)
            pooled = what == "threads" and role == "worker" and after <= POOLED_THREADS
            if after > before and not pooled:
                found.append(f"{what} of {role} grew from {before} to {after}")
    return found
