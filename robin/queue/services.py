"""What is asked of and done to Robin's queue. Robin lists it as HTML only, and acts on uids.

A page is one request. To find, or to act by a filter, the whole queue is read in pages of 1,000;
so that takes as long as the queue is long, and ends at `SCAN_ITEMS_MAX`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from urllib.parse import urlencode
from uuid import UUID

from django.core.cache import cache

from gateway_project.core import errors
from gateway_project.core.stores.caching import SingleFlight
from robin.config import settings_page
from robin.queue import live, translate
from robin.queue.translate import Item, QueuePage
from robin.upstream.client import HTML, robin

State = Literal["READY", "CLAIMED", "DEAD"]
Action = Literal["retry", "delete", "bounce"]
STATES: tuple[State, ...] = ("READY", "CLAIMED", "DEAD")
PAGE_ITEMS_MAX = 1000
SCAN_ITEMS_MAX = 20_000
UIDS_MAX = 1000
NO_SUCH_ITEM = (
    "There is no such item in the queue; it may have been delivered. GET /api/v1/queue lists what "
    "waits."
)
CONFIRM_SECONDS = 120
COUNTS = {"delete": "deletedCount", "retry": "retriedCount", "bounce": "bouncedCount"}


@dataclass(frozen=True, slots=True)
class Filter:
    """Empty means: all. Without states Robin leaves the dead out."""

    states: tuple[State, ...] = ()
    protocol: str = ""
    search: str = ""
    """In a recipient, the uid or the session's uid, whatever the case."""
    retry_min: int | None = None
    retry_max: int | None = None

    def query(self) -> dict[str, Any]:
        named = {"protocol": self.protocol, "state": ",".join(self.states)}
        bounds = {"retryMin": self.retry_min, "retryMax": self.retry_max}
        found: dict[str, Any] = {name: value for name, value in named.items() if value}
        return found | {name: value for name, value in bounds.items() if value is not None}

    def matches(self, item: Item) -> bool:
        wanted = self.search.lower()
        texts = (*item["recipients"], item["uid"], item.get("sessionUid", ""))
        return not wanted or any(wanted in text.lower() for text in texts)


def checked_uid(text: str) -> str:
    """Robin's uids are UUIDs; anything else is nothing it has, and is not sent to it."""
    try:
        if str(UUID(text)) == text.lower():
            return text.lower()
    except ValueError:
        pass
    raise errors.NotFound(NO_SUCH_ITEM)


_looks: SingleFlight[tuple[int, Filter, int, int], QueuePage] = SingleFlight()
_scans: SingleFlight[tuple[int, Filter], list[Item]] = SingleFlight()
_acts = 0
"""How often this process changed the queue: who asks afterwards sees what became of it."""

# -- Reading --------------------------------------------------------------------------------------


async def page(which: Filter, *, number: int, size: int) -> QueuePage:
    """Page `number` from 0. With a search the whole queue is read."""
    # Equal questions at once are one for Robin, unless something was done in between.
    key = (_acts, which, number, size)
    if not which.search:
        return await _looks.do(key, partial(_page, which, number, size))
    found = await _scans.do((_acts, which), partial(scan, which))
    return QueuePage(len(found), found[number * size : (number + 1) * size])


async def _page(which: Filter, number: int, size: int) -> QueuePage:
    query = urlencode({"page": number + 1, "limit": size, **which.query()})
    listing = await robin().client.get_json_if_known(
        "/client/queue/json", query, translate.queue_json
    )
    if listing is not None:
        return _with_state(listing, which)
    parse = partial(translate.queue_page, retries_max=settings_page.known_retries_max())
    return _with_state(await robin().client.get(f"/client/queue/list?{query}", HTML, parse), which)


def _with_state(found: QueuePage, which: Filter) -> QueuePage:
    """Neither form says it; it is known when one state was asked for."""
    if len(which.states) == 1:
        for item in found.items:
            item["state"] = which.states[0]
    return found


async def scan(which: Filter) -> list[Item]:
    """All items that match."""
    found: dict[str, Item] = {}
    number = 0
    while True:
        one = await _page(which, number, PAGE_ITEMS_MAX)
        # By uid: between two pages the queue moves, and an item may be on both.
        found.update((item["uid"], item) for item in one.items if which.matches(item))
        number += 1
        if number * PAGE_ITEMS_MAX >= one.total or not one.items:
            return list(found.values())
        if number * PAGE_ITEMS_MAX >= SCAN_ITEMS_MAX:
            raise errors.Conflict("The queue is too long to be searched. Narrow it by state.")


async def find(uid: str) -> Item:
    uid = checked_uid(uid)
    for state in STATES:
        for item in await scan(Filter(states=(state,))):
            if item["uid"] == uid:
                return item
    raise errors.NotFound(NO_SUCH_ITEM)


async def totals() -> dict[str, int]:
    """`{total, ready, claimed, dead}`."""
    pages = [await _page(Filter(states=(state,)), 0, 1) for state in STATES]
    ready, claimed, dead = (one.total for one in pages)
    return {"total": ready + claimed + dead, "ready": ready, "claimed": claimed, "dead": dead}


async def fetch_queue() -> live.Queue:
    """For the live queue: what waits, with the state of each item; of the dead their number."""
    both = [await _page(Filter(states=(s,)), 0, PAGE_ITEMS_MAX) for s in ("READY", "CLAIMED")]
    dead = (await _page(Filter(states=("DEAD",)), 0, 1)).total
    items = {item["uid"]: item for one in both for item in one.items}
    ready, claimed = both[0].total, both[1].total
    numbers = {"total": ready + claimed + dead, "ready": ready, "claimed": claimed, "dead": dead}
    return live.Queue(sorted(items.values(), key=lambda item: item["createTime"]), numbers)


# -- Acting ---------------------------------------------------------------------------------------


async def act(action: Action, uids: Sequence[str]) -> int:
    """Do it to these; how many there were. Raises what `Port` raises: then some may be done."""
    global _acts
    done = 0
    for start in range(0, len(uids), UIDS_MAX):
        chunk = list(uids[start : start + UIDS_MAX])
        answer = await robin().client.post(f"/client/queue/{action}", {"uids": chunk})
        count = answer.get(COUNTS[action]) if isinstance(answer, dict) else None
        if not isinstance(count, int):
            raise errors.UpstreamUnexpected
        done += count
        _acts += 1
    return done


async def act_on_one(action: Action, uid: str) -> None:
    """An item that Robin does not have is no error to it: it says that it did it to none."""
    if not await act(action, [checked_uid(uid)]):
        raise errors.NotFound(NO_SUCH_ITEM)


async def propose(action: Action, which: Filter, *, by: str) -> tuple[int, str]:
    """What the filter matches now, kept for two minutes: how many, and the token to confirm it."""
    uids = [item["uid"] for item in await scan(which)]
    token = secrets.token_urlsafe(24)
    # The latest of a person: twenty thousand uids are a megabyte.
    await cache.aset(_key(by), (token, action, which, uids), CONFIRM_SECONDS)
    return len(uids), token


async def confirm(action: Action, which: Filter, token: str, *, by: str) -> list[str]:
    """The uids that were shown as a number; the token is good once, for the same person."""
    kept = await cache.aget(_key(by))
    if kept is None or kept[:3] != (token, action, which) or not await cache.adelete(_key(by)):
        raise errors.Conflict("This confirmation is not valid, or no longer. Send the filter anew.")
    return list(kept[3])


def _key(person: str) -> str:
    return f"robin:confirm:{person}"


def unique(uids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(checked_uid(uid) for uid in uids))
