"""The stand-in's relay queue: items, their states, retries and the page that shows them.

With the real one's costs: a list takes half a millisecond for each item that there is, whatever was
asked for, and nothing else happens in the queue meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from random import Random
from typing import Any, Literal
from uuid import UUID

State = Literal["READY", "CLAIMED", "DEAD"]
STATES: tuple[State, ...] = ("READY", "CLAIMED", "DEAD")
Outcome = Literal["delivered", "later", "never"]
CLAIM_SECONDS = 300
LIST_SECONDS, ACT_SECONDS = 0.0005, 0.009
"""Of Robin's time: a list, for each item in the queue; an action, for each item it is done to."""
CLAIMED_MAX = 8
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def java_date(at: float) -> str:
    """`Mon, 3 Nov 2026 08:14:07 +0000`, Robin's pattern; `at` in Unix seconds."""
    when = datetime.fromtimestamp(at, UTC)
    day, month = DAYS[when.weekday()], MONTHS[when.month - 1]
    return f"{day}, {when.day} {month} {when.year} {when:%H:%M:%S} +0000"


@dataclass
class Envelope:
    mail: str
    rcpts: list[str]
    file: str = ""


@dataclass
class Item:
    """Times are Unix seconds, 0 for never."""

    uid: str
    session_uid: str
    created: float
    protocol: str
    envelopes: list[Envelope]
    state: State = "READY"
    retry: int = 0
    last_retry: float = 0.0
    next_attempt: float = 0.0
    claimed_until: float = 0.0
    error: str = ""
    only_permanent: bool = True
    """All failures so far were 5xx."""

    @property
    def retries_max(self) -> int:
        return 10 if self.protocol.lower() in ("dovecot-lda", "stalwart-direct") else 30


@dataclass
class RelayQueue:
    """Times come from `clock`, everything that is drawn by lot from `random`."""

    clock: Callable[[], float]
    random: Random
    items: dict[str, Item] = field(default_factory=dict)
    reschedules: int = 0
    cost: float = 1.0
    """Of the real one's: 0 makes it quick."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    delivered: list[str] = field(default_factory=list)
    """Uids, one for each time that it went out."""
    dead_counter: int = 0
    """As `/health` has it: a retry does not lower it."""
    _flying: dict[str, Item] = field(default_factory=dict)

    def uuid(self) -> str:
        return str(UUID(int=self.random.getrandbits(128), version=4))

    def enqueue(self, protocol: str, envelopes: list[Envelope], *, session_uid: str = "") -> Item:
        item = Item(self.uuid(), session_uid or self.uuid(), self.clock(), protocol, envelopes)
        self.items[item.uid] = item
        return item

    def count(self, *states: State) -> int:
        return sum(item.state in states for item in self.items.values())

    def size(self) -> int:
        return self.count("READY", "CLAIMED")

    def select(
        self,
        states: Iterable[State] = ("READY", "CLAIMED"),
        protocol: str = "",
        retry_min: int | None = None,
        retry_max: int | None = None,
    ) -> list[Item]:
        """In Robin's order: by creation, then by uid."""
        wanted = set(states)
        found = [
            item
            for item in self.items.values()
            if item.state in wanted
            and (not protocol or item.protocol.lower() == protocol.lower())
            and (retry_min is None or item.retry >= retry_min)
            and (retry_max is None or item.retry <= retry_max)
        ]
        return sorted(found, key=lambda item: (item.created, item.uid))

    # -- What an operator does --------------------------------------------------------------------

    def _known(self, uids: Iterable[str]) -> list[Item]:
        return [self.items[uid] for uid in dict.fromkeys(uids) if uid in self.items]

    def delete(self, uids: Iterable[str]) -> int:
        """What is being delivered goes out all the same."""
        found = self._known(uids)
        for item in found:
            del self.items[item.uid]
            self.dead_counter -= item.state == "DEAD" and self.dead_counter > 0
        return len(found)

    def retry(self, uids: Iterable[str]) -> int:
        """Also of dead items; one that is at its maximum dies again when it fails next. What is
        being delivered is claimed a second time."""
        found = self._known(uids)
        for item in found:
            item.state, item.error = "READY", ""
            item.retry += 1
            item.last_retry = item.next_attempt = self.clock()
        return len(found)

    def bounce(self, uids: Iterable[str]) -> int:
        found = self._known(uids)
        for item in found:
            self._die(item, "Bounced by admin endpoint")
        return len(found)

    def _die(self, item: Item, error: str) -> None:
        self.dead_counter += item.state != "DEAD"
        item.state, item.error = "DEAD", error

    async def work(self, seconds: float) -> None:
        """Nobody else does anything with the queue for so long."""
        async with self.lock:
            if seconds * self.cost > 0:
                await asyncio.sleep(seconds * self.cost)

    # -- What Robin does --------------------------------------------------------------------------

    def tick(self, outcome: Callable[[Item], Outcome] | None = None) -> None:
        """One round of the dispatcher: end claims, deliver what was claimed, claim anew."""
        now, outcome = self.clock(), outcome or self._by_lot
        for item in [*self._flying.values()]:
            # Whatever was done to it meanwhile: nobody takes it back from who delivers it.
            del self._flying[item.uid]
            if item.state != "CLAIMED" or item.uid not in self.items:
                self.delivered += [item.uid] if outcome(item) == "delivered" else []
        for item in self.select(["CLAIMED"]):
            if item.claimed_until <= now:
                item.state = "READY"
            else:
                self._deliver(item, outcome, now)
        ready = [item for item in self.select(["READY"]) if item.next_attempt <= now]
        for item in ready[: max(0, CLAIMED_MAX - self.count("CLAIMED"))]:
            item.state, item.claimed_until = "CLAIMED", now + CLAIM_SECONDS
            self._flying[item.uid] = item

    def _by_lot(self, item: Item) -> Outcome:
        return self.random.choices(("delivered", "later", "never"), (25, 70, 5))[0]

    def _deliver(self, item: Item, outcome: Callable[[Item], Outcome], now: float) -> None:
        how: Outcome = outcome(item) if item.envelopes else "delivered"
        if how == "delivered":
            self.delivered.append(item.uid)
            del self.items[item.uid]
            return
        item.only_permanent = item.only_permanent and how == "never"
        item.error = "550 5.1.1 No such user" if how == "never" else "421 4.3.2 try later"
        is_over = item.protocol.lower() == "esmtp" and item.only_permanent
        if is_over or item.retry >= item.retries_max:
            self._die(item, item.error)
            self._send_bounces(item)
            return
        item.retry += 1
        item.last_retry = now
        item.next_attempt = now + wait_seconds(item.retry)
        item.state = "READY"
        self.reschedules += 1

    def _send_bounces(self, item: Item) -> None:
        """To each recipient that failed, and not to the sender: so does Robin."""
        for envelope in item.envelopes:
            for rcpt in envelope.rcpts:
                name = f"{envelope.file}.bounce.eml"
                self.enqueue("esmtp", [Envelope("mailer-daemon@mx.north.example", [rcpt], name)])


def wait_seconds(
    retry: int, *, total: int = 30, first_minutes: int = 1, growth: float = 1.2
) -> int:
    """How long Robin waits before attempt `retry` + 1; 0 beyond the last."""
    return 0 if retry > total else 60 * round(first_minutes * growth**retry)


def page(items: list[Item], number: int, limit: int, *, now: float) -> str:
    """`/client/queue/list` as HTML: page `number` from 1, `limit` items on each.

    The date of every item is that of the listing.
    """
    total = len(items)
    pages = -(-total // limit)
    first, last = (number - 1) * limit + 1, min(number * limit, total)
    shown = items[first - 1 : last]
    rows = "\n".join(_row(n, item, now) for n, item in enumerate(shown, first))
    links = "".join(f"<a href='?page={n}&limit={limit}'>{n}</a> " for n in range(1, pages + 1))
    pagination = f"<div class='pagination'>{links}</div>" if pages > 1 else ""
    return f"""<!DOCTYPE html>
<html><head><title>Relay Queue</title></head><body><h1>Relay Queue</h1>
<p class="meta">Total items: <strong>{total}</strong> |
Showing <strong>{first}</strong> to <strong>{last}</strong> |
Page <strong>{number}</strong> of <strong>{pages}</strong></p>
{pagination}
<table><thead><tr><th></th><th>#</th><th>Session UID</th><th>Date</th><th>Protocol</th>
<th>Retry</th><th>Last retry</th><th>Envelopes</th><th>Recipients</th><th>Files</th><th></th></tr>
</thead><tbody>
{rows}
</tbody></table>
{pagination}
</body></html>"""


def _row(number: int, item: Item, now: float) -> str:
    rcpts = [rcpt for envelope in item.envelopes for rcpt in envelope.rcpts]
    shown = list(dict.fromkeys(rcpts))[:5]
    more = f" … (+{len(rcpts) - len(shown)})" if len(rcpts) > len(shown) else ""
    files = ", ".join(
        f"<span title='{_html(e.file)}'>{_html(e.file.rpartition('/')[2])}</span>"
        for e in item.envelopes[:5]
        if e.file
    )
    buttons = "".join(
        f"<button class='btn-{what}' data-uid='{item.uid}'>{what.title()}</button>"
        for what in ("delete", "retry", "bounce")
    )
    cells: list[tuple[str, Any]] = [
        ("checkbox-col", f"<input type='checkbox' class='row-checkbox' data-uid='{item.uid}'/>"),
        ("nowrap", number),
        ("mono", _html(item.session_uid) or "-"),
        ("", java_date(now)),
        ("", _html(item.protocol)),
        ("", item.retry),
        ("nowrap", java_date(item.last_retry) if item.last_retry else "-"),
        ("", len(item.envelopes)),
        # Its row is filled name by name, so that a recipient may be called as one of them.
        ("", _html(", ".join(shown)).replace("{{FILES}}", files) + more),
        ("", files),
        ("actions nowrap", buttons),
    ]
    tags = (f"<td class='{name}'>" if name else "<td>" for name, _ in cells)
    row = "".join(f"{tag}{cell}</td>" for tag, (_, cell) in zip(tags, cells, strict=True))
    return f"<tr>{row}</tr>"


def _html(text: str) -> str:
    return escape(text, quote=True).replace("&#x27;", "&#39;")
