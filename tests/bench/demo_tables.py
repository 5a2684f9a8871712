"""What a part of `demo_quality.py` measured, as a table, and how that gets into a card."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

MARKS = ("<!-- measured: begin -->\n", "<!-- measured: end -->\n")


@dataclass(slots=True)
class Table:
    """What one part measured, as text, and the bars it is judged by."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    verdicts: list[tuple[bool, str]] = field(default_factory=list)

    def add(self, name: str, *values: float | str, digits: int = 1) -> None:
        """Append a row."""
        told = (
            value if isinstance(value, str) else "" if np.isnan(value) else f"{value:.{digits}f}"
            for value in values
        )
        self.rows.append([name, *told])

    def as_json(self) -> dict[str, Any]:
        """Give the table as JSON holds it."""
        return asdict(self)


def as_markdown(tables: dict[str, Any]) -> str:
    """Write tables as JSON holds them, each with its verdicts."""
    lines: list[str] = []
    for table in tables.values():
        lines += ["", f"### {table['title']}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in _with_rule(table)]
        if table["verdicts"]:
            lines.append("")
        for met, text in table["verdicts"]:
            lines.append(f"- {'met' if met else '**not met**'}: {text}")
    return "\n".join(lines).strip() + "\n"


def _with_rule(table: dict[str, Any]) -> Iterator[list[str]]:
    yield table["columns"]
    yield ["---", *("---:" for _ in table["columns"][1:])]
    yield from table["rows"]


def fill_card(text: str, measured: str) -> str:
    """Put `measured` between the marks of a card."""
    head, rest = text.split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    return head + MARKS[0] + "\n" + measured + "\n" + MARKS[1] + tail
