"""Open-loop load: requests arrive by a Poisson process, whether or not earlier ones were answered."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count

import httpx

from support.load.answers import Attempt, send
from support.load.requests import Ask, Requests

MIX = {
    "cached": 40,
    "new": 20,
    "data": 15,
    "stream": 10,
    "hang-up": 5,
    "wrong": 5,
    "unreachable": 5,
}
EDITING = ("cached", "new", "data", "stream")
_CALIBRATING = 8
_RETURNS = 50


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Requests of one client at a mean rate; one in `returning` of those refused is sent again."""

    client: str
    rate_per_s: float
    mix: Mapping[str, int]
    returning: int


@dataclass(frozen=True, slots=True)
class Phase:
    name: str
    length_s: float
    arrivals: tuple[Arrivals, ...]


def plan(capacity_per_s: float, *, total_s: float, names: tuple[str, ...]) -> list[Phase]:
    """Return the phases of these names; rates are edits a second, as shares of the measured capacity."""
    share = sum(MIX[kind] for kind in EDITING) / sum(MIX.values())
    cached = {"cached": 1}

    def mixed(part: float) -> tuple[Arrivals, ...]:
        return (Arrivals("mixed", part * capacity_per_s / share, MIX, returning=4),)

    flood = (
        Arrivals("flood", 2 * capacity_per_s, cached, returning=0),
        Arrivals("calm", 0.1 * capacity_per_s, cached, returning=1),
    )
    lengths = {"below": 5, "at": 5, "above": 5, "flood": 3, "after": 1}
    made = {
        "below": mixed(0.6),
        "at": mixed(1.0),
        "above": mixed(2.0),
        "flood": flood,
        "after": mixed(0.6),
    }
    unit_s = total_s / sum(lengths[name] for name in names)
    return [Phase(name, lengths[name] * unit_s, made[name]) for name in names]


class Load:
    """Sends requests and keeps their outcomes."""

    def __init__(self, client: httpx.AsyncClient, requests: Requests, *, seed: int) -> None:
        self.attempts: list[Attempt] = []
        self.began: dict[str, float] = {}
        self._client = client
        self._requests = requests
        self._random = random.Random(seed)  # noqa: S311 - a load that can be had again
        self._numbers = count(1)
        self._turns: Counter[str] = Counter()
        self._began_s = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def now_s(self) -> float:
        return time.monotonic() - self._began_s

    @property
    def under_way(self) -> int:
        return len(self._tasks)

    async def calibrate(self, length_s: float) -> float:
        """Return the edits a second while some are always waiting."""
        self.began["calibrating"] = began_s = self.now_s
        kinds = ("cached", "new", "data")

        async def connection() -> None:
            while self.now_s < began_s + length_s:
                number = next(self._numbers)
                ask = self._requests.edit(number, kinds[number % len(kinds)])
                await self._send(ask, "calibrating", self.now_s)

        await asyncio.gather(*(connection() for _ in range(_CALIBRATING)))
        delivered = sum(attempt.code == "success" for attempt in self.attempts)
        capacity_per_s = delivered / (self.now_s - began_s)
        self._requests.leave_within_s = 4 / capacity_per_s
        return capacity_per_s

    async def run(self, phase: Phase) -> None:
        """Send the requests of a phase; some may still be unanswered when it ends."""
        self.began[phase.name] = self.now_s
        await asyncio.gather(*(self._arrive(phase, each) for each in phase.arrivals))

    async def drain(self) -> None:
        """Wait until every request has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _arrive(self, phase: Phase, arrivals: Arrivals) -> None:
        due_s = self.now_s
        end_s = due_s + phase.length_s
        kinds, weights = list(arrivals.mix), list(arrivals.mix.values())
        while (due_s := due_s + self._random.expovariate(arrivals.rate_per_s)) < end_s:
            await asyncio.sleep(max(0.0, due_s - self.now_s))
            number, kind = next(self._numbers), self._random.choices(kinds, weights)[0]
            if kind == "cached":
                ask = self._requests.edit(number, kind, client=arrivals.client)
            else:
                ask = self._requests.make(number, kind, self._turns[kind])
            self._turns[kind] += 1
            returning = arrivals.returning > 0 and number % arrivals.returning == 0
            task = asyncio.create_task(self._follow(ask, phase.name, due_s, returning=returning))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow(self, ask: Ask, phase: str, due_s: float, *, returning: bool) -> None:
        """Send, and after a refusal send again when `Retry-After` is over."""
        attempt = await self._send(ask, phase, due_s)
        for again in range(1, _RETURNS + 1):
            if not returning or attempt.retry_after_s is None:
                return
            await asyncio.sleep(attempt.retry_after_s)
            attempt = await self._send(ask, phase, self.now_s, again=again)

    async def _send(self, ask: Ask, phase: str, due_s: float, *, again: int = 0) -> Attempt:
        attempt = await send(
            self._client, ask, phase=phase, due_s=due_s, began_s=self._began_s, again=again
        )
        self.attempts.append(attempt)
        return attempt
