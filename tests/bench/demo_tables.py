"""Tables of `demo_quality.py` as Markdown, and their place in a model card."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

MARKS = ("<!-- measured: begin -->\n", "<!-- measured: end -->\n")


@dataclass(slots=True)
class Table:
    """The measurements of one part as text, and its bars."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    verdicts: list[tuple[bool, str]] = field(default_factory=list)

    def add(self, name: str, *values: float | str, digits: int = 1) -> None:
        """Append a row."""
        cells = (
            value if isinstance(value, str) else "" if np.isnan(value) else f"{value:.{digits}f}"
            for value in values
        )
        self.rows.append([name, *cells])

    def as_json(self) -> dict[str, Any]:
        """Return the table as JSON types."""
        return asdict(self)


def as_markdown(tables: dict[str, Any]) -> str:
    """Format tables of JSON types, each with its verdicts."""
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
    """Replace the text between the marks of a model card."""
    head, rest = text.split(MARKS[0])
    tail = rest.split(MARKS[1])[1]
    return head + MARKS[0] + "\n" + measured + "\n" + MARKS[1] + tail
