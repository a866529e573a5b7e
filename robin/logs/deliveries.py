"""What Robin's log says of deliveries: of one session's tries, and of what failed last.

Robin names a session by its uid where a try begins and where it ends ("Processing session: uid=…",
"Session processed: uid=…"); what the other server answered stands between them, in lines of the
same thread that name nobody. So threads are followed from one to the other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic

from robin.logs import search
from robin.logs.parsing import Entry, Filter

UUID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
BEGINS = re.compile(r"Processing session: uid=(\S+?),")
ENDS = re.compile(
    r"Session processed: uid=(\S+?), removedEnvelopes=(\d+), remainingEnvelopes=(\d+)"
)
FAILED = re.compile(
    r"\AError(?: in SMTP exchange| reading/writing)?: (?P<error>.+)"
    r"|\A(?P<whole>(?:Delivery failed for session uid=|Permanent 5xx failure"
    r"|Max retries reached).+)",
    re.DOTALL,
)
TRIES_MAX = 20
LINES_MAX = 200
LOOK_BACK_SECONDS = 1.5
"""So long the log is read for what failed last."""
ENTRIES_MAX = 20_000
TRY_SPAN = timedelta(minutes=10)
"""Longer than a try may take."""


@dataclass(slots=True)
class Try:
    """One delivery: when it began, and what came of it as far as the log says."""

    begun: datetime
    thread: str
    ended: datetime | None = None
    delivered: int | None = None
    """Mails of it that the other side took; None: the log does not say."""
    left: int | None = None
    errors: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        if self.left == 0 and self.delivered:
            return "delivered"
        if self.delivered and self.left:
            return "partly delivered"
        if self.errors or self.left:
            return "failed"
        return "under way" if self.ended is None else "ended"


@dataclass(frozen=True, slots=True)
class Failure:
    at: datetime
    text: str


@dataclass(frozen=True, slots=True)
class History:
    """Newest first. `since`: nothing before was looked at, unless `is_complete`."""

    entries: list[Entry]
    tries: list[Try]
    since: datetime
    is_complete: bool


def error_in(entry: Entry) -> str | None:
    """What a line says that went wrong with a delivery."""
    failure = FAILED.match(entry.message)
    if failure is not None:
        return failure["error"] or failure["whole"]
    if entry.level in ("ERROR", "WARN"):
        return UUID.sub("", entry.message).strip(" :,")
    return None


def tries_of(session: str, entries: Iterable[Entry]) -> list[Try]:
    """The tries of one session, oldest first; `entries` oldest first."""
    found: list[Try] = []
    running: dict[str, Try] = {}  # by thread
    for entry in entries:
        begins, ends = BEGINS.match(entry.message), ENDS.match(entry.message)
        if begins is not None:
            running.pop(entry.thread, None)
            if begins[1] == session:
                running[entry.thread] = Try(entry.at, entry.thread)
                found.append(running[entry.thread])
            continue
        current = running.get(entry.thread)
        if ends is not None and ends[1] == session:
            current = current or next((one for one in found if one.ended is None), None)
            if current is not None:
                current.ended = entry.at
                current.delivered, current.left = int(ends[2]), int(ends[3])
            running.pop(entry.thread, None)
            continue
        text = error_in(entry) if current is not None or session in entry.searched() else None
        target = current or (found[-1] if found else None)
        if text is not None and target is not None and text not in target.errors:
            target.errors.append(text)
    return found[-TRIES_MAX:]


async def history(session: str, *others: str) -> History:
    """What the log of today and yesterday says of a session, and of other ids of its item.

    Raises what `search.page` raises.
    """
    entries: dict[str, Entry] = {}
    since, is_complete = None, True
    for name in (session, *others):
        if not name:
            continue
        found = await search.page(Filter(search=name), offset=0, limit=LINES_MAX)
        entries |= {entry.id + entry.message: entry for entry in found.entries}
        is_complete = is_complete and found.is_complete
        since = found.since if since is None else max(since, found.since)
    lines = sorted(entries.values(), key=lambda entry: entry.at)
    begins = [one for one in lines if session and BEGINS.match(one.message)]
    between = await _lines_of_try(begins[-1], lines) if begins else []
    whole = {e.id + e.message: e for e in (*lines, *between)}
    ordered = sorted(whole.values(), key=lambda entry: (entry.at, entry.id))
    tries = tries_of(session, ordered) if session else []
    assert since is not None  # noqa: S101 - there is one name at least
    return History(ordered[::-1][:LINES_MAX], tries[::-1], since, is_complete)


async def _lines_of_try(begins: Entry, lines: list[Entry]) -> list[Entry]:
    """What the thread of the last try wrote until it ended: those lines name no session."""
    ends = [one for one in lines if ENDS.match(one.message) and one.at >= begins.at]
    until = ends[0].at if ends else begins.at + TRY_SPAN
    which = Filter(since=begins.at, until=until)
    found = await search.page(which, offset=0, limit=ENTRIES_MAX)
    mine = [entry for entry in found.entries if entry.thread == begins.thread]
    session = BEGINS.match(begins.message)
    return [entry for entry in mine if not _is_of_another(entry, session)][-LINES_MAX:]


def _is_of_another(entry: Entry, session: re.Match[str] | None) -> bool:
    named = BEGINS.match(entry.message) or ENDS.match(entry.message)
    return named is not None and session is not None and named[1] != session[1]


async def last_failures() -> dict[str, Failure]:
    """What failed last, by session, of as much of the log as can be read in a moment.

    Raises what `search.walk` raises.
    """
    began = monotonic()
    recent: list[Entry] = []
    async for entries, _ in search.walk(Filter()):
        recent += entries
        if monotonic() - began > LOOK_BACK_SECONDS or len(recent) >= ENTRIES_MAX:
            break
    return failures(recent[::-1])


def failures(entries: Collection[Entry]) -> dict[str, Failure]:
    """By session; `entries` oldest first."""
    found: dict[str, Failure] = {}
    running: dict[str, str] = {}  # thread → session
    for entry in entries:
        begins, ends = BEGINS.match(entry.message), ENDS.match(entry.message)
        if begins is not None:
            running[entry.thread] = begins[1]
            continue
        if ends is not None:
            running.pop(entry.thread, None)
            if ends[3] == "0":
                found.pop(ends[1], None)
            continue
        text = error_in(entry)
        if text is None:
            continue
        named = UUID.search(entry.message)
        session = named[0] if named else running.get(entry.thread)
        if session is not None and not (text.startswith(ENDINGS) and session in found):
            found[session] = Failure(entry.at, text)
    return found


ENDINGS = ("Permanent 5xx failure", "Max retries reached")
"""What is said after the answer of the other server, which says more."""
