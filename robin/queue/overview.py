"""The queue as operators look at it: what is known of it, however old, and by destination.

Of the scan that everybody shares (`scan.py`): nothing here has Robin asked for more than a page of
the API does. When Robin fails, or reads its queue for the first time, that is said beside what is
known, instead of showing nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from django.utils.translation import gettext_noop

from gateway_project.core import clock, errors
from robin.config import settings_page
from robin.queue import scan
from robin.queue.scan import View, scanner
from robin.queue.scan_store import SIZES, TROUBLE, Facts
from robin.queue.services import Filter, checked_uid, destinations_of
from robin.queue.source import PART_ITEMS
from robin.queue.translate import Item

PATIENCE_SECONDS = 1.5
"""So long a page waits for a first answer."""
OLD_SECONDS = 60.0
DESTINATIONS_MAX = 5000
OTHERS = "(others)"
"""Of so many destinations the rest is one: a spammer can make up any number."""
State = Literal["fresh", "old", "busy", "down", "unknown"]


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of the queue, and what is wrong, if anything is."""

    view: View | None
    error: errors.GatewayError | None = None

    @property
    def as_of(self) -> float:
        """Unix seconds, of the oldest part; 0: nothing is known."""
        return self.view.as_of(scan.parts_of("ALL", self.view.facts)) if self.view else 0.0

    @property
    def age_seconds(self) -> int:
        return max(0, round(clock.time() - self.as_of)) if self.as_of else 0

    @property
    def state(self) -> State:
        """`busy`: Robin works, and is being read; `unknown`: nothing was ever read."""
        if self.error is not None:
            return "busy" if isinstance(self.error, scan.Reading) else "down"
        if self.view is None:
            return "unknown"
        return "old" if self.age_seconds > OLD_SECONDS else "fresh"

    @property
    def totals(self) -> dict[str, int] | None:
        return self.view.totals() if self.view is not None else None


async def look(*, is_whole: bool = True) -> Look:
    """What is known, and that all of it is wanted. Raises 503 where no Robin is configured."""
    reader = scanner()
    names = (scan.WHOLE,) if is_whole else ("ALL:0",)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return Look(await reader.view(*names, is_loaded=False))
    except TimeoutError:
        error: errors.GatewayError = scan.Reading(
            gettext_noop(
                "Robin's queue is being read for the first time, which takes as long as it is long."
            ),
            seconds=5.0,
        )
    except errors.GatewayError as exc:
        error = exc
    try:
        return Look(await reader.last_known(), error)
    except errors.GatewayError:
        return Look(None, error)


# -- By destination -------------------------------------------------------------------------------


@dataclass(slots=True)
class Destination:
    """Where mail waits to go. An item for several counts in each."""

    name: str
    ready: int = 0
    claimed: int = 0
    dead: int = 0
    unknown: int = 0
    """Of these the state has not been read yet."""
    oldest_ms: int = 0
    """When the oldest that waits was first seen here; 0: none waits."""
    next_ms: int | None = None
    """When the next try should be; 0: as soon as Robin comes to it; None: none will be."""

    @property
    def total(self) -> int:
        return self.ready + self.claimed + self.dead + self.unknown


_counted: tuple[Any, list[Destination]] = (None, [])
"""Of the latest state of the scan: who watches it need not all count it."""


async def destinations(view: View) -> list[Destination]:
    """By destination, the largest first."""
    global _counted
    fingerprint = _fingerprint_of(view.facts)
    known, found = _counted
    if known == fingerprint:
        return found
    by_name: dict[str, Destination] = {}
    async for items in scanner().each(view):
        for item in items:
            is_full = len(by_name) >= DESTINATIONS_MAX
            names = destinations_of(item)
            for name in {n if n in by_name or not is_full else OTHERS for n in names}:
                _count(by_name.setdefault(name, Destination(name)), item)
    found = sorted(by_name.values(), key=lambda one: (-one.total, one.name))
    _counted = (fingerprint, found)
    return found


async def destinations_of_sessions(
    view: View, sessions: Collection[str]
) -> dict[str, frozenset[str]]:
    """Where the items of these sessions go, by the session's uid."""
    found: dict[str, frozenset[str]] = {}
    async for items in scanner().each(view):
        for item in items:
            uid = item.get("sessionUid", "")
            if uid in sessions:
                found[uid] = found.get(uid, frozenset()) | destinations_of(item)
    return found


def _fingerprint_of(facts: Mapping[str, Facts]) -> Any:
    """The same as long as nothing that is known of the queue has changed."""
    names = sorted(name for name in facts if name not in (SIZES, TROUBLE))
    return tuple(
        (name, facts[name]["at"], facts[name].get("total"), str(facts[name].get("retries")))
        for name in names
    )


def _count(where: Destination, item: Item) -> None:
    state = item.get("state")
    if state == "DEAD":
        where.dead += 1
        return
    if state == "CLAIMED":
        where.claimed += 1
    elif state == "READY":
        where.ready += 1
    else:
        where.unknown += 1
    since = int(item.get("firstSeenTime", 0))
    if since and (not where.oldest_ms or since < where.oldest_ms):
        where.oldest_ms = since
    due = next_try_ms(item)
    if due is not None and (where.next_ms is None or due < where.next_ms):
        where.next_ms = due


def next_try_ms(item: Item) -> int | None:
    """When Robin should try it again, by its settings: its list does not say.

    0: as soon as it comes to it. None: it will not, or does so at this moment.
    """
    if item.get("state") in ("DEAD", "CLAIMED"):
        return None
    last = int(item.get("lastRetryTime", 0))
    if not last:
        return 0
    due = last + 1000 * settings_page.known_waits().seconds(int(item["retryCount"]))
    return due if due > clock.time() * 1000 else 0


# -- Items ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Page:
    """`total` that match of what is known, and these of them."""

    items: list[Item]
    total: int


async def page(view: View, which: Filter, *, first: int, size: int) -> Page:
    """`size` of them from `first` on. Raises `Reading` where that part is not known yet."""
    items, total = list[Item](), 0
    if which == Filter():  # where they stand is known, so only those parts are looked at
        begin, end = first // PART_ITEMS, (first + size - 1) // PART_ITEMS + 1
        async for known in scanner().each(view, begin=begin, end=end):
            items += known
        skip = first - begin * PART_ITEMS
        if not items[skip:] and first < view.total:
            raise scan.Reading(
                gettext_noop(
                    "This part of the queue has not been read yet. Look at an earlier page, or "
                    "wait."
                ),
                seconds=30.0,
            )
        return Page(items[skip : skip + size], view.total)
    async for known in scanner().each(view):
        found = [item for item in known if which.matches(item)]
        items += found[max(0, first - total) : max(0, first + size - total)]
        total += len(found)
    return Page(items, total)


def parts(view: View) -> int:
    """Into how many parts the queue is divided; `part` has the items of one."""
    return len(scan.parts_of("ALL", view.facts))


async def part(view: View, number: int) -> list[Item]:
    """Those that are known. One that moved meanwhile may be in two parts."""
    found = list[Item]()
    async for known in scanner().each(view, begin=number, end=number + 1):
        found += known
    return found


async def chosen(view: View, uids: list[str]) -> list[Item]:
    """Those of these that are known, in the order of the queue."""
    wanted = frozenset(uids)
    found = list[Item]()
    async for known in scanner().each(view):
        found += [item for item in known if item["uid"] in wanted]
    return found


async def one(uid: str) -> tuple[Look, Item | None]:
    """An item, None where none is known by now. Raises 404 for what is no uid of Robin's."""
    uid = checked_uid(uid)
    seen = await look()
    if seen.view is None:
        return seen, None
    found = await chosen(seen.view, [uid])
    return seen, found[0] if found else None
