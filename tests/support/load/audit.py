"""Checks that every request got exactly one answer, its own, and every answer has one result in the store."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from support.load.answers import Attempt

_LOGGED = ("http.answered", "edit.finished")


@dataclass(frozen=True, slots=True)
class Stored:
    """One result in the store: its key, and the seed in its metadata."""

    key: str
    seed: int


def read_store(folder: Path) -> list[Stored]:
    """Return every result in the folder of a local store."""
    objects = folder / "objects"
    found = []
    for path in objects.glob("**/results/*/*"):
        with path.open("rb") as file:
            metadata = json.loads(file.readline())["metadata"]
        found.append(Stored(str(path.relative_to(objects)), json.loads(metadata["meta"])["seed"]))
    return found


def read_log(path: Path) -> Counter[tuple[str, str]]:
    """Return how often each request was logged as answered, and as edited."""
    counted: Counter[tuple[str, str]] = Counter()
    with path.open() as lines:
        for line in lines:
            if '"load-' in line:
                entry = json.loads(line)
                if entry["message"] in _LOGGED:
                    counted[entry["message"], entry["requestId"]] += 1
    return counted


def audit(
    attempts: list[Attempt], stored: list[Stored], logged: Counter[tuple[str, str]]
) -> list[str]:
    """Return every fault found."""
    found = [f"{each.id} ({each.kind}): {fault}" for each in attempts for fault in each.faults]
    found += [f"{each.id} ({each.kind}) is lost" for each in attempts if each.end == "lost"]
    sent = {each.number for each in attempts}
    found += [f"request {n} has no record" for n in range(min(sent), max(sent)) if n not in sent]
    delivered = [each for each in attempts if each.code == "success"]
    found += _repeated("request", (each.id for each in attempts))
    found += _repeated("job", (each.job_id for each in delivered))
    found += _repeated("number delivered", (each.number for each in delivered))
    found += _repeated("seed in the store", (each.seed for each in stored))
    found += [f"{name} of {who}: {n} times" for (name, who), n in logged.items() if n > 1]
    answered = {each.id for each in attempts if each.end == "answered"}
    unlogged = [who for who in answered if not logged["http.answered", who]]
    found += [f"{who}: no line says that it was answered" for who in unlogged]
    left = {each.number for each in attempts if each.end == "left"}
    keys = {each.object_key: each.number for each in delivered}
    at_rest = {each.key: each.seed for each in stored}
    found += [f"{key} is not in the store" for key in keys.keys() - at_rest.keys()]
    found += [
        f"{key} in the store is of seed {seed}, which nobody was given"
        for key, seed in at_rest.items()
        if keys.get(key, seed) != seed or (key not in keys and seed not in left)
    ]
    return found


def _repeated(what: str, values: Iterable[object]) -> list[str]:
    return [
        f"{what} {value}: {times} times" for value, times in Counter(values).items() if times > 1
    ]
