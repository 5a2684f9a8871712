"""Simulate a fleet of workers over one queue: who waits how long, and what it costs.

One edit at a time in each worker, first come first served, as the service, Runpod's queue and a
Kubernetes service with KEDA have it. Workers beyond `least` start on demand and stop when idle.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Arrivals = Literal["poisson", "bursts"]
_ARRIVAL, _READY, _DONE, _IDLE = range(4)


@dataclass(frozen=True)
class Load:
    """Edits a second on average, and the seconds that one keeps a worker, as samples to draw from.

    `bursts` come in groups of `burst` edits at once.
    """

    per_s: float
    service_s: tuple[float, ...]
    arrivals: Arrivals = "poisson"
    burst: int = 20


@dataclass(frozen=True)
class Fleet:
    """`least` workers that always run, up to `most`; one starts where more than `per_worker` edits a worker are inside.

    Prices are a second: of a worker that always runs, and of one on demand, which is paid from its
    start to its end. At most `queue` edits wait; others are refused. `most` may be `least`.
    """

    least: int
    most: int
    cold_start_s: float = 60.0
    idle_s: float = 5.0
    per_worker: float = 1.0
    queue: int = 1_000_000
    active_price: float = 0.00116
    flex_price: float = 0.00116


@dataclass
class Outcome:
    """What came of a run: seconds from arrival to result of each edit, waiting of each, refusals, cost."""

    latency_s: np.ndarray
    wait_s: np.ndarray
    refused: int
    cost: float
    busy_s: float
    paid_s: float
    starts: int

    @property
    def cost_an_edit(self) -> float:
        return self.cost / max(len(self.latency_s), 1)

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.latency_s, percent)) if len(self.latency_s) else math.nan


def draw_arrivals(load: Load, edits: int, rng: np.random.Generator) -> np.ndarray:
    """Return when each edit arrives, in seconds."""
    if load.arrivals == "poisson":
        return np.cumsum(rng.exponential(1 / load.per_s, edits))
    groups = math.ceil(edits / load.burst)
    at_s = np.cumsum(rng.exponential(load.burst / load.per_s, groups))
    return np.repeat(at_s, load.burst)[:edits]


@dataclass
class _Run:
    """The state of one simulation."""

    fleet: Fleet
    idle: dict[int, float] = field(default_factory=dict)  # worker -> since when
    begun: dict[int, float] = field(default_factory=dict)  # worker on demand -> its start
    queue: deque[int] = field(default_factory=deque)
    events: list[tuple[float, int, int]] = field(default_factory=list)
    running: int = 0
    starting: int = 0
    made: int = 0
    flex_s: float = 0.0

    @property
    def alive(self) -> int:
        return len(self.idle) + self.running + self.starting

    def scale_up(self, now_s: float) -> None:
        inside = len(self.queue) + self.running
        wanted = min(self.fleet.most, math.ceil(inside / self.fleet.per_worker))
        for _ in range(wanted - self.alive):
            worker = self.fleet.least + self.made
            self.made += 1
            self.starting += 1
            self.begun[worker] = now_s
            heapq.heappush(self.events, (now_s + self.fleet.cold_start_s, _READY, worker))

    def rest(self, worker: int, now_s: float) -> None:
        self.idle[worker] = now_s
        if worker in self.begun:
            heapq.heappush(self.events, (now_s + self.fleet.idle_s, _IDLE, worker))

    def stop_if_idle(self, worker: int, now_s: float) -> None:
        since_s = self.idle.get(worker, math.inf)
        if since_s + self.fleet.idle_s <= now_s and not self.queue:
            del self.idle[worker]
            self.flex_s += now_s - self.begun.pop(worker)


def simulate(fleet: Fleet, load: Load, *, edits: int, seed: int = 0) -> Outcome:
    """Run `edits` edits through the fleet, which begins with its least workers idle."""
    rng = np.random.default_rng(seed)
    at_s = draw_arrivals(load, edits, rng)
    service_s = rng.choice(np.asarray(load.service_s), edits)
    run = _Run(fleet)
    run.idle = dict.fromkeys(range(fleet.least), 0.0)
    run.events = [(float(when), _ARRIVAL, number) for number, when in enumerate(at_s)]
    begin_s = np.full(edits, np.nan)
    now_s, refused, pending = 0.0, 0, edits
    while run.events and (pending or run.begun):
        now_s, kind, who = heapq.heappop(run.events)
        if kind == _ARRIVAL and len(run.queue) >= fleet.queue and not run.idle:
            refused += 1
            pending -= 1
        elif kind == _ARRIVAL:
            run.queue.append(who)
        elif kind == _IDLE:
            run.stop_if_idle(who, now_s)
        else:
            run.starting -= kind == _READY
            run.running -= kind == _DONE
            pending -= kind == _DONE
            run.rest(who, now_s)
        while run.queue and run.idle:
            worker, _ = run.idle.popitem()
            number = run.queue.popleft()
            begin_s[number] = now_s
            run.running += 1
            heapq.heappush(run.events, (now_s + service_s[number], _DONE, worker))
        if kind == _ARRIVAL:
            run.scale_up(now_s)
    return _sum_up(run, at_s, begin_s, service_s, refused=refused, ended_s=now_s)


def _sum_up(
    run: _Run,
    at_s: np.ndarray,
    begin_s: np.ndarray,
    service_s: np.ndarray,
    *,
    refused: int,
    ended_s: float,
) -> Outcome:
    taken = ~np.isnan(begin_s)
    wait_s = (begin_s - at_s)[taken]
    fleet, active_s = run.fleet, run.fleet.least * ended_s
    return Outcome(
        latency_s=wait_s + service_s[taken],
        wait_s=wait_s,
        refused=refused,
        cost=active_s * fleet.active_price + run.flex_s * fleet.flex_price,
        busy_s=float(service_s[taken].sum()),
        paid_s=active_s + run.flex_s,
        starts=run.made,
    )


def erlang_c(workers: int, offered: float) -> float:
    """Return the share of arrivals that wait in M/M/c, for an offered load in workers (Erlang, 1917).

    By the recursion of Erlang B, which does not overflow.

    >>> round(erlang_c(1, 0.5), 3), round(erlang_c(10, 8.0), 3)
    (0.5, 0.409)
    """
    blocked = 1.0
    for count in range(1, workers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - offered / workers * (1 - blocked))


def mean_wait_s(workers: int, offered: float, service_s: float) -> float:
    """Return the mean waiting time in M/M/c."""
    return erlang_c(workers, offered) * service_s / (workers - offered)


def find_workers(load: Load, *, target_s: float, percent: float = 99.0, edits: int) -> int:
    """Return the fewest workers that always run with which that share of edits takes at most `target_s`.

    Raises:
        ValueError: an edit alone takes longer.
    """
    if max(load.service_s) > target_s:
        raise ValueError("an edit alone takes longer than that")
    low = max(1, math.ceil(load.per_s * float(np.mean(load.service_s)) * 1.0001)) - 1
    high = low + 1

    def is_enough(workers: int) -> bool:
        fleet = Fleet(workers, workers)
        return simulate(fleet, load, edits=edits).percentile(percent) <= target_s

    while not is_enough(high):
        low, high = high, high + max(1, high - low) * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def read_service_s(text: str) -> tuple[float, ...]:
    """Return seconds by comma, each with its share if that is not one: `19x3,5`.

    >>> read_service_s("19x3,5")
    (19.0, 19.0, 19.0, 5.0)
    """
    found: list[float] = []
    for part in text.split(","):
        seconds, _, times = part.partition("x")
        found += [float(seconds)] * int(times or 1)
    return tuple(found)


def summarize(outcomes: Sequence[tuple[int, Outcome]]) -> list[str]:
    """Return a Markdown table by workers."""
    lines = ["| workers | p50 s | p99 s | busy | cents an edit | refused | starts |"]
    lines += ["| --- " * 7 + "|"]
    for workers, one in outcomes:
        share = one.busy_s / one.paid_s
        lines.append(
            f"| {workers} | {one.percentile(50):.1f} | {one.percentile(99):.1f} | {share:.0%} "
            f"| {100 * one.cost_an_edit:.2f} | {one.refused} | {one.starts} |"
        )
    return lines
