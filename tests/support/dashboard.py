"""The Grafana dashboard beside this file, and what its queries name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_DASHBOARD = Path(__file__).parent / "dashboard.json"
_OF_SCRAPES = {"job", "instance", "le"}
"""Labels that Prometheus adds, and that of a histogram's buckets."""
_SELECTOR = re.compile(r"(?<![\w$\"])((?:retouch|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_GROUP = re.compile(r"\bby \(([^)]*)\)")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")


class Named(NamedTuple):
    """The metrics of a panel, each with the labels that a query asks of it."""

    title: str
    metrics: dict[str, set[str]]


def read_panels() -> Iterator[Named]:
    """Yield what each panel names; a label that groups, or is in the legend, counts for all its metrics."""
    for panel in json.loads(_DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield Named(panel["title"], _read_target(target))


def _read_target(target: dict[str, Any]) -> dict[str, set[str]]:
    query = target["expr"]
    grouped = {name.strip() for names in _GROUP.findall(query) for name in names.split(",")}
    grouped |= set(_LEGEND.findall(target["legendFormat"]))
    return {
        name: (grouped | set(_MATCHER.findall(labels))) - _OF_SCRAPES
        for name, labels in _SELECTOR.findall(query)
    }
