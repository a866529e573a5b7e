"""What was checked and seen, as one table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Row:
    """`is_ok` is None for a figure that has no bound."""

    point: str
    check: str
    seen: str = "not run to its end"
    is_ok: bool | None = False

    def found(self, seen: str, is_ok: bool | None) -> None:
        self.seen, self.is_ok = seen, is_ok

    @property
    def verdict(self) -> str:
        return {True: "ok", False: "NO", None: "-"}[self.is_ok]


@dataclass
class Table:
    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def check(self, point: str, check: str) -> Iterator[Row]:
        """One row; what goes wrong inside is what was seen, and the run goes on."""
        row = Row(point, check)
        self.rows.append(row)
        try:
            yield row
        except Exception as exc:  # noqa: BLE001
            row.found(f"{type(exc).__name__}: {exc}"[:300], False)
        print(f"  {row.verdict:3} {check}: {row.seen}", flush=True)

    @property
    def is_ok(self) -> bool:
        return bool(self.rows) and all(row.is_ok is not False for row in self.rows)

    def text(self) -> str:
        """In Markdown, in the order of running."""
        lines = ["| point | check | seen | ok |", "| --- | --- | --- | --- |"]
        for row in self.rows:
            cells = (row.point, row.check, row.seen, row.verdict)
            lines.append("| " + " | ".join(map(_cell, cells)) + " |")
        return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
