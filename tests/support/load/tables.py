"""Tables of a load run's results."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from support.load.answers import Attempt
from support.load.requests import OVERLOAD

_EDITED = ("cached", "new", "data", "stream")


def quantile(values: Iterable[float], part: float) -> float:
    found = list(values)
    return float(np.quantile(found, part)) if found else float("nan")


def by_phase(attempts: list[Attempt], began: dict[str, float], ended_s: float) -> str:
    """Rates, times to the answer and refusals by phase and client, at the times requests were due."""
    titles = ("arrivals/s", "edits/s", "p50 s", "p99 s", "refused", "p99 s", "came back", "served")
    lines = [f"{'phase, client':<20}" + "".join(f"{title:>11}" for title in titles)]
    groups: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        groups[attempt.phase, attempt.client].append(attempt)
    ends = dict(pairwise([*began, ""]))
    for (phase, client), group in groups.items():
        length_s = began.get(ends[phase], ended_s) - began[phase]
        edits = [each for each in group if each.kind in _EDITED and each.code == "success"]
        refused = [each for each in group if each.code in OVERLOAD]
        asked = [each for each in group if each.kind in _EDITED]
        back = [each for each in group if "." in each.id]
        served = sum(each.code == "success" for each in back)
        cells = (
            f"{len(group) / length_s:.2f}",
            f"{len(edits) / length_s:.2f}",
            f"{quantile((each.took_s for each in edits), 0.5):.2f}",
            f"{quantile((each.took_s for each in edits), 0.99):.2f}",
            f"{len(refused) / max(1, len(asked)):.0%}",
            f"{quantile((each.took_s for each in refused), 0.99):.2f}",
            f"{len(back)}",
            f"{served / max(1, len(back)):.0%}",
        )
        lines.append(f"{phase + ', ' + client:<20}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines) + "\n"


def by_kind(attempts: list[Attempt]) -> str:
    """Outcomes of each kind of request."""
    counted = Counter(f"{each.kind}: {each.code or each.end}" for each in attempts)
    ends = Counter(each.end for each in attempts)
    lines = [f"{name:<40}{times:>7}" for name, times in sorted(counted.items())]
    total = ", ".join(f"{ends[end]} {end}" for end in ("answered", "left", "lost"))
    return "\n".join([*lines, f"{len(attempts)} sent: {total}"]) + "\n"


def honesty(attempts: list[Attempt]) -> str:
    """`Retry-After` against the time until the next queue place was free."""
    freed_s = sorted(
        each.due_s + each.took_s
        for each in attempts
        if each.code == "success" or each.end == "left"
    )
    refused = [each for each in attempts if each.retry_after_s is not None and freed_s]
    if not refused:
        return "nobody was refused\n"
    waits_s, early = [], 0
    for each in refused:
        at_s = each.due_s + each.took_s
        place = int(np.searchsorted(freed_s, at_s, side="right"))
        if place < len(freed_s):
            waits_s.append(freed_s[place] - at_s)
            early += waits_s[-1] > (each.retry_after_s or 0)
    said = Counter(each.retry_after_s for each in refused)
    return (
        f"{len(refused)} refused, told to wait"
        f" {', '.join(f'{s} s ({n} times)' for s, n in sorted(said.items()))};"
        f" the next place came free after {quantile(waits_s, 0.5):.2f} s (p50),"
        f" {quantile(waits_s, 0.99):.2f} s (p99), {early} times later than told\n"
    )


def patience(attempts: list[Attempt]) -> str:
    """Total wait of requests that were sent again until they succeeded, by client."""
    journeys: dict[tuple[str, str, int], list[Attempt]] = defaultdict(list)
    for each in attempts:
        if each.kind in _EDITED:
            journeys[each.phase, each.client, each.number].append(each)
    groups: dict[tuple[str, str], list[list[Attempt]]] = defaultdict(list)
    for (phase, client, _), journey in journeys.items():
        if len(journey) > 1:
            groups[phase, client].append(sorted(journey, key=lambda each: each.due_s))
    lines = []
    for (phase, client), found in groups.items():
        served = [journey for journey in found if journey[-1].code == "success"]
        whole_s = [each[-1].due_s + each[-1].took_s - each[0].due_s for each in served]
        tries = [len(journey) for journey in served]
        lines.append(
            f"{phase}, {client}: {len(found)} came back, {len(served)} were served in the end, after"
            f" {quantile(tries, 0.5):.0f} tries (p99 {quantile(tries, 0.99):.0f}) and"
            f" {quantile(whole_s, 0.5):.2f} s (p99 {quantile(whole_s, 0.99):.2f})\n"
        )
    return "".join(lines)


def held(samples: list[dict[str, dict[str, int]]]) -> str:
    """Minimum and maximum of what each role held."""
    lines = [f"{'held':<14}{'MiB':>16}{'descriptors':>14}{'threads':>12}{'processes':>12}"]
    for role in ("supervisor", "worker", "decoders"):
        cells = []
        for what in ("rss_bytes", "descriptors", "threads", "processes"):
            values = [sample[role][what] for sample in samples]
            unit = 2**20 if what == "rss_bytes" else 1
            cells.append(f"{min(values) // unit} to {max(values) // unit}")
        lines.append(f"{role:<14}{cells[0]:>16}{cells[1]:>14}{cells[2]:>12}{cells[3]:>12}")
    return "\n".join(lines) + "\n"
