"""What is asked of and done to Robin's queue. Robin lists it as HTML only, and acts on uids.

All that is read comes from the scan that everybody shares (`scan.py`), and says of when it is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from django.conf import settings
from django.core.cache import cache
from django.utils.translation import gettext_noop

from gateway_project.core import errors
from gateway_project.core.clock import utc_text
from gateway_project.core.sentences import Sentence
from robin.queue import live, scan
from robin.queue.scan import STATES, Claimed, State, View, scanner
from robin.queue.source import PART_ITEMS
from robin.queue.translate import Item
from robin.upstream.client import is_undone, robin

Action = Literal["retry", "delete", "bounce"]
PAGE_ITEMS_MAX = 1000
UIDS_MAX = 1000
NO_SUCH_ITEM = (
    "There is no such item in the queue; it may have been delivered. GET /api/v1/queue lists what "
    "waits."
)
UIDS_AUDITED_MAX = 50
AT_ONCE_MAX = 25
"""So many are done while the caller waits: Robin may take a sixth of a second for each."""
CONFIRM_SECONDS = 120
COUNTS = {"delete": "deletedCount", "retry": "retriedCount", "bounce": "bouncedCount"}


NOWHERE = "(none)"
"""The destination of an item without a recipient that has one."""


def destinations_of(item: Item) -> frozenset[str]:
    """The domains of the recipients that Robin shows of it, the first five."""
    found = {rcpt.rpartition("@")[2].lower() for rcpt in item["recipients"] if "@" in rcpt}
    return frozenset(found - {""}) or frozenset({NOWHERE})


@dataclass(frozen=True, slots=True)
class Filter:
    """Empty means: all."""

    states: tuple[State, ...] = ()
    protocol: str = ""
    search: str = ""
    """In a recipient, the uid or the session's uid, whatever the case."""
    retry_min: int | None = None
    retry_max: int | None = None
    destination: str = ""
    """The domain of a recipient, in small letters; `NOWHERE` for none."""

    def matches(self, item: Item) -> bool:
        """By what Robin's list shows: of the recipients the first five."""
        if self.states and item.get("state", "READY") not in self.states:
            return False
        if self.protocol and item["protocol"].lower() != self.protocol.lower():
            return False
        if self.retry_min is not None and item["retryCount"] < self.retry_min:
            return False
        if self.retry_max is not None and item["retryCount"] > self.retry_max:
            return False
        if self.destination and self.destination not in destinations_of(item):
            return False
        wanted = self.search.lower()
        texts = (*item["recipients"], item["uid"], item.get("sessionUid", ""))
        return not wanted or any(wanted in text.lower() for text in texts)


ALL, WAITING = Filter(STATES), Filter(("READY", "CLAIMED"))


def checked_uid(text: str) -> str:
    """Robin's uids are UUIDs; anything else is nothing it has, and is not sent to it."""
    try:
        if str(UUID(text)) == text.lower():
            return text.lower()
    except ValueError:
        pass
    raise errors.NotFound(NO_SUCH_ITEM)


# -- Reading --------------------------------------------------------------------------------------


class Page(NamedTuple):
    """`as_of`: Unix seconds, of when what is shown is. When not `is_complete`, only `known` items
    of the queue's could be looked at, so that there may be more that match."""

    total: int
    items: list[Item]
    as_of: float
    is_complete: bool
    known: int


async def page(which: Filter, *, number: int, size: int) -> Page:
    """Page `number` from 0, of what was read last. Raises what `Scanner.view` raises."""
    first, last = number * size, (number + 1) * size
    if which == ALL:
        names = [f"ALL:{n}" for n in range(first // PART_ITEMS, (last - 1) // PART_ITEMS + 1)]
        view = await scanner().view(*names)
        _raise_if_unread(view, names, first)
        start = int(names[0].partition(":")[2]) * PART_ITEMS
        items = view.items[first - start : last - start]
        return Page(view.total, items, view.as_of(names), view.is_complete, view.known)
    view = await _whole(which)
    total, items = 0, list[Item]()
    async for known in scanner().each(view):
        found = [item for item in known if which.matches(item)]
        items += found[max(0, first - total) : max(0, last - total)]
        total += len(found)
    if not view.is_complete and which in (ALL, WAITING):
        total = max(total, view.totals()["ready"] + view.totals()["claimed"])
        if not items and first < total:
            raise _unread(view)
    names = scan.parts_of("ALL", view.facts)
    return Page(total, items, view.as_of(names), view.is_complete, view.known)


async def _whole(which: Filter) -> View:
    """All that is known, if it can be told which items are in these states."""
    view = await scanner().view(scan.WHOLE, is_loaded=False)
    if which.states and "READY" not in which.states and not view.knows_states:
        raise scan.Reading(
            gettext_noop(
                "Which items are claimed, or dead, has not been read yet. Try again later."
            ),
            seconds=30,
        )
    return view


def _raise_if_unread(view: View, names: Sequence[str], first: int) -> None:
    if first < view.total and not any(name in view.parts for name in names):
        raise _unread(view)


def _unread(view: View) -> scan.Reading:
    if view.is_whole:
        return scan.Reading(
            gettext_noop(
                "The queue moved while it was read: an item that passed from one part of the list "
                "into another may have been missed. Try again later."
            ),
            seconds=30.0,
        )
    return scan.Reading(
        Sentence(
            gettext_noop(
                "This part of the queue has not been read yet: %(known)s of %(total)s "
                "items are known. Robin's list is asked for slowly, so that mail goes "
                "on. Try again later."
            ),
            known=str(view.known),
            total=str(view.total),
        ),
        seconds=30.0,
    )


async def find(uid: str) -> Item:
    uid = checked_uid(uid)
    view = await scanner().view("ALL:0")
    if not any(item["uid"] == uid for item in view.items):
        view = await scanner().view(scan.WHOLE, is_loaded=False)
    async for known in scanner().each(view):
        for item in known:
            if item["uid"] == uid:
                return item
    if not view.is_complete:
        raise _unread(view)
    raise errors.NotFound(NO_SUCH_ITEM)


async def totals() -> dict[str, int]:
    """`{total, ready, claimed, dead}`."""
    return (await scanner().view("ALL:0")).totals()


async def fetch_queue() -> live.Queue:
    """For the live queue: what waits, with the state of each item; of the dead their number."""
    view = await scanner().view("ALL:0")
    if view.dead and "ALL:1" in view.facts:
        view = await scanner().view("ALL:0", "ALL:1")
    waiting = [item for item in view.items if item.get("state") != "DEAD"]
    return live.Queue(waiting, view.totals(), utc_text(datetime.fromtimestamp(view.as_of(), UTC)))


# -- Acting ---------------------------------------------------------------------------------------


class Done(NamedTuple):
    """`unknown`: Robin was asked and did not say; `left_out`: being delivered, and not forced."""

    done: int
    requested: int
    unknown: int = 0
    left_out: int = 0
    last_try: int = 0
    """So many are dead at once if this try fails."""
    is_in_doubt: bool = False
    """Whether some may be in delivery that nobody knew of."""


IN_DELIVERY = {
    "retry": "A retry would send it a second time.",
    "bounce": "It may go out all the same.",
    "delete": "It may go out all the same.",
}
MAYBE_IN_DELIVERY = {
    "retry": gettext_noop("What Robin is delivering at this moment goes out twice."),
    "bounce": gettext_noop("What Robin is delivering at this moment goes out all the same."),
    "delete": gettext_noop("What Robin is delivering at this moment goes out all the same."),
}
LAST_TRY = gettext_noop("Of these, {} have no try left: if this one fails they are dead at once.")


def warnings(
    action: str, last_try: int, is_in_doubt: bool, *, say: Callable[[str], str] = str
) -> list[str]:
    """For people, each in the language in which `say` says it."""
    last = [say(LAST_TRY).format(last_try)] if last_try else []
    return last + ([say(MAYBE_IN_DELIVERY[action])] if is_in_doubt else [])


@contextmanager
def counting(requested: int) -> Iterator[None]:
    """Whatever goes wrong inside says what became of so many: none is done, unless it knows better,
    and none is unknown."""
    try:
        yield
    except errors.GatewayError as error:
        error.more = {"done": 0, "requested": requested, "unknown": 0, **error.more}
        raise


async def act(action: Action, uids: Sequence[str], *, is_forced: bool = False) -> Done:
    """Do it to these, a few: at once. Raises `Reading` when Robin reads out its queue meanwhile,
    and what `RobinAPI` raises, with `done`, `requested` and `unknown` in its `more`."""
    with counting(len(uids)):
        return await _act(action, uids, await scanner().claimed(), is_forced=is_forced)


async def _act(action: Action, uids: Sequence[str], claimed: Claimed, *, is_forced: bool) -> Done:
    last = await last_tries(action, uids)
    chosen = [uid for uid in uids if is_forced or uid not in claimed.uids]
    left_out = len(uids) - len(chosen)
    if not chosen:
        return Done(0, len(uids), left_out=left_out, last_try=last)
    async with scanner().turn(seconds=settings.ROBIN_TIMEOUT_SECONDS):
        is_in_doubt = not claimed.is_certain
        try:
            answer = await robin().client.post(f"/client/queue/{action}", {"uids": chosen})
            done = counted(action, answer, len(chosen))
        except errors.GatewayError as error:
            error.more = {"unknown": 0 if is_undone(error) else len(chosen)}
            raise
    await scanner().acted(action, chosen, done=done)
    return Done(done, len(uids), left_out=left_out, last_try=last, is_in_doubt=is_in_doubt)


def counted(action: Action, answer: Any, asked: int) -> int:
    """Of so many, to how many Robin says that it did it."""
    count = answer.get(COUNTS[action]) if isinstance(answer, dict) else None
    if type(count) is not int or not 0 <= count <= asked:  # `true` is an int to Python
        raise errors.UpstreamUnexpected
    return count


async def last_tries(action: Action, uids: Sequence[str]) -> int:
    """A retry takes one of an item's tries; the last one makes it dead."""
    if action != "retry":
        return 0
    try:
        view = await scanner().known_items(uids)
    except errors.GatewayError:
        return 0
    return sum(item["retryCount"] + 1 >= item["maxRetryCount"] for item in view)


async def act_on_one(action: Action, uid: str, *, is_forced: bool) -> Done:
    """An item that Robin does not have is no error to it: it says that it did it to none."""
    with counting(1):
        claimed = await scanner().claimed()
        if uid in claimed.uids and not is_forced:
            raise errors.Conflict(
                f"{_when(claimed)} {IN_DELIVERY[action]} Send `force=true` to do it all the same."
            )
        found = await _act(action, [uid], claimed, is_forced=is_forced)
        if not found.done:
            raise errors.NotFound(NO_SUCH_ITEM)
    return found


def _when(claimed: Claimed) -> str:
    if claimed.is_certain:
        return "It is being delivered at this moment."
    at = utc_text(datetime.fromtimestamp(claimed.at, UTC))
    return f"It was being delivered at {at}, when that was read last."


class Proposal(NamedTuple):
    """What a filter matches, of what is known; good for two minutes with the token `confirm`."""

    matched: int
    confirm: str
    claimed: int
    last_try: int
    is_complete: bool


async def propose(action: Action, which: Filter, *, by: str) -> Proposal:
    view = await _whole(which)
    uids, claimed, last = list[str](), 0, 0
    async for known in scanner().each(view):
        for item in known:
            if which.matches(item):
                uids.append(item["uid"])
                claimed += item.get("state") == "CLAIMED"
                last += action == "retry" and item["retryCount"] + 1 >= item["maxRetryCount"]
    token = secrets.token_urlsafe(24)
    # The latest of a person: fifty thousand uids are two megabytes.
    await cache.aset(_key(by), (token, action, which, uids), CONFIRM_SECONDS)
    return Proposal(len(uids), token, claimed, last, view.is_complete)


async def confirm(
    action: Action, which: Filter, token: str, *, by: str, is_kept: bool = False
) -> list[str]:
    """The uids that were shown as a number; the token is good once, for the same person.

    `is_kept`: whoever asks sees to it that it is done once, and may have to come again.
    """
    kept = await cache.aget(_key(by))
    is_right = kept is not None and kept[:3] == (token, action, which)
    if not is_right or not (is_kept or await cache.adelete(_key(by))):
        raise errors.Conflict(
            gettext_noop("This confirmation is not valid, or no longer. Send the filter anew.")
        )
    return list(kept[3])


def _key(person: str) -> str:
    return f"robin:confirm:{person}"


def unique(uids: Sequence[str]) -> list[str]:
    with counting(len(uids)):
        return list(dict.fromkeys(checked_uid(uid) for uid in uids))
