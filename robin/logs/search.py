"""Reading Robin's log: in slices backwards in time, as far as what is wanted takes.

Robin reads its whole files of today and yesterday for each question, and makes one text of all
lines that hold what was asked for, in memory. So it is never asked for everything: the time stands
in each line after the level (`WARN |1129-04`), and its beginning asks for a day, an hour, ten
minutes and so on down to a millisecond. How much was written when shows a sample, the lines of one
millisecond in a thousand.

A search cannot be had together with a time. Where the text is rare Robin is asked for it; where it
is not, the slices are searched here, and the answer says how far back that went.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic
from urllib.parse import quote
from zoneinfo import ZoneInfo

from django.conf import settings

from gateway_project.core import clock
from gateway_project.core.stores.caching import SingleFlight, TTLCache
from gateway_project.core.telemetry.metrics import cache_bytes
from robin.logs import parsing
from robin.logs.parsing import Entry, Filter
from robin.upstream.client import TEXT, robin

SHARED_SECONDS = 2.0
PAST_SECONDS = 60.0
"""A slice that has ended does not change; one of this moment is shared for less."""
SLICE_BYTES = 4 << 20
"""What a slice should hold."""
SLICE_BYTES_MAX = 8 << 20
"""Of more a shorter one is asked for."""
RARE_BYTES = 4 << 20
"""So much of what a search finds Robin may as well give in one."""
ENOUGH_BYTES = 256 << 10
"""So much is looked at before a text is taken to be rare: Robin makes one text of all hits."""
FILLED_SECONDS = 1.0
"""A page that is full is given after so much: counting on, for the total, costs Robin."""
SEARCH_SECONDS = 3.5
"""One that is not, after so much; an earlier `endTime` goes on from there."""
SPANS = tuple(timedelta(seconds=n) for n in (86_400, 3_600, 600, 60, 10, 1, 0.1, 0.01, 0.001))
CUTS = (5, 7, 8, 9, 10, 11, 12, 13, 14)
"""How much of `1129-041130137` names a day, an hour, ten minutes, …, a millisecond."""
DAY, TEN_MINUTES, SECOND, MILLISECOND = 0, 2, 5, 8
SAMPLE, ONE_IN = "137|", 1000
"""Lines of that millisecond: any that no log is full of."""
STAMPED_CHARS = len("ERROR|1129-041130137|")
RARE_LINE_BYTES = 200
"""Of a line; so much is taken to be there of what no sample has."""
SMALL_SECONDS = 0.15
"""Robin read both files in that: so they are, and all of them may be asked for."""
READ_BYTES_PER_SECOND = 300 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """`total` counts what was seen; unless `is_complete`, nothing before `since` was."""

    entries: list[Entry]
    total: int
    is_complete: bool
    since: datetime


@dataclass(frozen=True, slots=True)
class Profile:
    """How much Robin wrote when, as far as a sample can tell."""

    is_small: bool
    bytes_total: float
    known_since: float  # monotonic()
    bytes_in: Counter[str] = field(default_factory=Counter)
    """Ten minutes, as `1129-041` → bytes, estimated."""
    bytes_of: Counter[str] = field(default_factory=Counter)
    """What lines begin with, as `ERROR|` → bytes, estimated."""
    asked_at: datetime | None = None
    """When Robin was asked for the sample last, as its log has it: it notes that first."""
    is_cut: bool = False
    """It did not find its note of this time: nothing that it logged since then is found."""

    def share(self, markers: list[str]) -> float:
        """How much of the log lines are that have one of these before their time."""
        total = self.bytes_of.total()
        if markers == ["|"] or not total:
            return 1.0
        there = sum(self.bytes_of[marker] for marker in markers)
        return max(there, RARE_LINE_BYTES * ONE_IN) / max(total, RARE_LINE_BYTES * ONE_IN)

    def level(self, end: datetime, zone: ZoneInfo, coarsest: int, share: float) -> int:
        """The longest slice before `end` of which that share should not be too large."""
        if self.is_small:
            return DAY
        if not self.bytes_in:
            return coarsest
        for level in range(DAY, SECOND):
            name = _name(_begin_of(end, level, zone), min(level, TEN_MINUTES), zone)
            there = sum(n for ten, n in self.bytes_in.items() if ten.startswith(name))
            if share * there * min(1.0, SPANS[level] / SPANS[TEN_MINUTES]) <= SLICE_BYTES:
                return level
        return SECOND


class _TooMuch(Exception):
    pass


# Bounded in bytes: slices differ.
_slices: TTLCache[str, bytes] = TTLCache(settings.ROBIN_LOG_CACHE_BYTES_MAX, size_of=len)
_asking: SingleFlight[str, bytes] = SingleFlight()
_profile: Profile | None = None


async def page(which: Filter, *, offset: int, limit: int) -> Found:
    """The entries from `offset` on, newest first. Raises what `RobinAPI` raises."""
    began = monotonic()
    total, shown = 0, list[Entry]()
    earliest = since = _earliest(which)
    async for part, since in walk(which):
        first = max(0, offset - total)
        shown += part[first : first + limit - len(shown)]
        total += len(part)
        is_full = total > offset + limit
        if monotonic() - began > (FILLED_SECONDS if is_full else SEARCH_SECONDS):
            return Found(shown, total, since <= earliest, since)
    return Found(shown, total, True, earliest)


async def walk(which: Filter) -> AsyncIterator[tuple[list[Entry], datetime]]:
    """All that match, newest first, slice by slice, each with the time down to which it goes."""
    zone = ZoneInfo(settings.ROBIN_LOG_TIMEZONE)
    profile = await _profiled(zone)
    if profile.is_cut and (at := profile.asked_at) and (which.until is None or which.until > at):
        yield [parsing.gap(at, _name(at, MILLISECOND, zone), parsing.CUT)], clock.now()
    may_ask = bool(which.search) and not profile.is_small
    checked = found = 0
    async for begin, end, content in _pieces(which, profile, zone):
        if content is None:
            yield [parsing.gap(begin, _name(begin, MILLISECOND, zone))], begin
            continue
        entries = await asyncio.to_thread(_read, content, which, zone, begin, end)
        yield entries, begin
        checked += len(content)
        found += sum(len(entry.raw_message) for entry in entries)
        if not may_ask or checked < ENOUGH_BYTES:
            continue
        may_ask = found / checked * profile.bytes_total <= RARE_BYTES
        if may_ask:
            try:
                content = await _asked(which.search, is_past=False)
            except _TooMuch:
                may_ask = False
            else:
                earliest = _earliest(which)
                rest = await asyncio.to_thread(_read, content, which, zone, earliest, begin)
                yield rest, earliest
                return


def _earliest(which: Filter) -> datetime:
    """Robin looks into its files of today and yesterday."""
    zone = ZoneInfo(settings.ROBIN_LOG_TIMEZONE)
    today = clock.now().astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    first = (today - timedelta(days=1)).astimezone(UTC)
    return first if which.since is None else max(first, which.since.astimezone(UTC))


async def _pieces(
    which: Filter, profile: Profile, zone: ZoneInfo
) -> AsyncIterator[tuple[datetime, datetime, bytes | None]]:
    """(begin, end, what Robin has of it), the latest first, without a gap; None: too much, even of
    a millisecond."""
    earliest, now = _earliest(which), clock.now()
    end = latest = now + timedelta(seconds=1)
    if which.until is not None and which.until < latest:  # to the last of all days nothing adds
        end = min(latest, which.until.astimezone(UTC) + timedelta(milliseconds=1))
    level, share = TEN_MINUTES, profile.share(which.markers())
    too_long: dict[int, datetime] = {}  # level → down to where a slice of it holds too much
    while end > earliest:
        level = profile.level(end, zone, level, share)
        content: bytes | None = None
        while content is None:
            while too_long.get(level, end) < end:
                level += 1
            begin = _begin_of(end, level, zone)
            try:
                contents = [
                    await _asked(marker + _name(begin, level, zone), is_past=end < now)
                    for marker in which.markers()
                ]
            except _TooMuch:
                if level == MILLISECOND:
                    break
                too_long[level] = begin
            else:
                content = b"".join(contents)
        # Robin's clock may be ahead: of the first slice all is shown.
        yield begin, end if end != latest else end + timedelta(days=1), content
        # Of what no sample tells: one step further at a time, while there is little.
        if content is None or len(content) * 10 < SLICE_BYTES:
            level = max(DAY, level - 1)
        end = begin


def _begin_of(end: datetime, level: int, zone: ZoneInfo) -> datetime:
    """Where the slice begins that ends there, or goes on beyond."""
    at = (end - timedelta(microseconds=1)).astimezone(zone)
    if level == DAY:
        begin = at.replace(hour=0, minute=0, second=0, microsecond=0)
    elif level <= TEN_MINUTES:
        minute = at.minute // 10 * 10 if level == TEN_MINUTES else 0
        begin = at.replace(minute=minute, second=0, microsecond=0)
    else:
        into = timedelta(seconds=at.second, microseconds=at.microsecond)
        into -= into % SPANS[level]
        begin = at.replace(second=into.seconds, microsecond=into.microseconds)
    return begin.astimezone(UTC)


def _name(begin: datetime, level: int, zone: ZoneInfo) -> str:
    return begin.astimezone(zone).strftime("%m%d-%H%M%S%f")[: CUTS[level]]


def _read(
    content: bytes, which: Filter, zone: ZoneInfo, begin: datetime, end: datetime
) -> list[Entry]:
    """What the filter lets through of that time, newest first."""
    found = parsing.entries(content, now=clock.now(), zone=zone)
    entries = [one for one in found if begin <= one.at < end and which.keeps(one)]
    entries.sort(key=lambda entry: entry.at)
    entries.reverse()  # of two in the same millisecond, the later line comes first
    return entries


async def _profiled(zone: ZoneInfo) -> Profile:
    global _profile
    known = _profile
    if known is not None and monotonic() - known.known_since < PAST_SECONDS:
        return known
    began, content, is_answered = monotonic(), b"", True
    try:
        content = await _asked(SAMPLE, is_past=False)
    except _TooMuch:
        is_answered = False
    seconds = monotonic() - began
    bytes_in, bytes_of = Counter[str](), Counter[str]()
    for line in content.split(b"\n"):
        level, bar, stamp = line[:STAMPED_CHARS].partition(b"|")
        if stamp.endswith(SAMPLE.encode()):
            size = ONE_IN * (len(line) + 1)
            bytes_in[stamp[:8].decode("ascii", "replace")] += size
            bytes_of[(level + bar).decode("ascii", "replace")] += size
    # An empty sample tells nothing: clocks that tick in tens of milliseconds never say 137.
    is_small = is_answered and seconds < SMALL_SECONDS
    total = float(bytes_in.total()) or seconds * READ_BYTES_PER_SECOND
    asked_at = parsing.last_search(content, SAMPLE, now=clock.now(), zone=zone)
    if _profile is not None and _profile is not known:
        return _profile  # of somebody who shared the answer
    is_cut = asked_at is not None and known is not None and asked_at == known.asked_at
    _profile = Profile(is_small, total, monotonic(), bytes_in, bytes_of, asked_at, is_cut)
    return _profile


async def _asked(query: str, *, is_past: bool) -> bytes:
    """What Robin finds; equal questions at once are one. Raises `_TooMuch`."""
    known = _slices.get(query)
    if known is not None:
        return known
    content = await _asking.do(query, lambda: _ask(query))
    _slices.put(query, content, seconds=PAST_SECONDS if is_past else SHARED_SECONDS)
    cache_bytes.labels("robin_log").set(_slices.size)
    return content


async def _ask(query: str) -> bytes:
    parts, size = [], 0
    asked = robin().client.stream(
        f"/logs?query={quote(query, safe='')}",
        TEXT,
        timeout_seconds=settings.ROBIN_LOGS_TIMEOUT_SECONDS,
    )
    async with asked as answer:
        async for part in answer.parts:
            size += len(part)
            if size > SLICE_BYTES_MAX:
                raise _TooMuch
            parts.append(part)
    return b"".join(parts)


def forget() -> None:
    global _profile
    _profile = None
    _slices.clear()
