"""Robin's log: its lines as entries, newest first, and the filters that Robin does not have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

from gateway_project.core.clock import utc_text

LINE = re.compile(
    r"(?P<level>TRACE|DEBUG|INFO|WARN|ERROR|FATAL) *\|(?P<day>\d{4})-(?P<clock>\d{9})\|"
    r"(?P<thread>[^|]*)\|(?P<logger>[^|]*)\|(?P<a>[^|]*)\|(?P<b>[^|]*)\|(?P<c>[^|]*)\|"
    r"(?P<message>.*)",
    re.DOTALL,
)
LEVELS = ("ERROR", "WARN", "INFO", "DEBUG", "TRACE")
EVERYTHING = "|"


@dataclass(frozen=True, slots=True)
class Entry:
    at: datetime
    id: str
    level: str
    thread: str
    logger: str
    message: str
    context: tuple[str, ...]

    def shown(self) -> dict[str, Any]:
        """As Robin UI reads it."""
        at = utc_text(self.at)
        entry: dict[str, Any] = {"id": self.id, "timestamp": at, "level": self.level}
        entry |= {"logger": self.logger, "message": self.message}
        if self.thread:
            entry["thread"] = self.thread
        if any(self.context):
            entry["context"] = dict(zip("abc", self.context, strict=True))
        return entry

    def line(self) -> str:
        shown = self.shown()
        return f"{shown['timestamp']} {self.level:5} [{self.thread}] {self.logger} {self.message}"


def entries(text: str, *, now: datetime, zone: tzinfo) -> list[Entry]:
    """The entries in a text of Robin's, newest first; `now` knows the year that no line names.

    Lines of stack traces are left out: Robin gives those that match without the entry they
    belong to.
    """
    today = now.astimezone(zone)
    seen: Counter[str] = Counter()
    found = []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        at = match and _time(match["day"], match["clock"], today)
        if match is None or at is None:
            continue
        stamp = f"{match['day']}-{match['clock']}"
        seen[stamp] += 1
        level = "ERROR" if match["level"] == "FATAL" else match["level"]
        found.append(
            Entry(
                at.astimezone(UTC),
                f"{stamp}-{seen[stamp]}",
                level,
                match["thread"],
                match["logger"],
                match["message"],
                (match["a"], match["b"], match["c"]),
            )
        )
    found.sort(key=lambda entry: entry.at)
    found.reverse()  # of two in the same millisecond, the later line comes first
    return found


def _time(day: str, clock: str, today: datetime) -> datetime | None:
    """Of this year, or of the last when it would lie in the future: December read in January."""
    for year in (today.year, today.year - 1):
        try:
            at = datetime.strptime(f"{year}{day}{clock}", "%Y%m%d%H%M%S%f")  # noqa: DTZ007
        except ValueError:  # 29 February, or no date at all
            continue
        found = at.replace(tzinfo=today.tzinfo)
        if found <= today + timedelta(days=1):
            return found
    return None


@dataclass(frozen=True, slots=True)
class Filter:
    """What may be asked of the log. Empty means: all."""

    levels: frozenset[str] = frozenset()
    search: str = ""
    logger: str = ""
    since: datetime | None = None
    until: datetime | None = None

    def queries(self) -> list[str]:
        """What to search Robin's log for: as little as holds all that is wanted."""
        if self.search:
            return [self.search]
        if len(self.levels) == 1:
            level = next(iter(self.levels))
            return ["ERROR|", "FATAL|"] if level == "ERROR" else [f"{level:5}|"]
        return [EVERYTHING]

    def keep(self, found: Iterable[Entry]) -> list[Entry]:
        """What the filter lets through of Robin's answer, which was searched already."""
        return [
            entry
            for entry in found
            if (not self.levels or entry.level in self.levels)
            and (not self.logger or self.logger.lower() in entry.logger.lower())
            and (self.since is None or entry.at >= self.since)
            and (self.until is None or entry.at <= self.until)
        ]
