"""Robin's queue as the gateway knows it: read by one, for everybody, as often as Robin can bear.

Pages, searches, totals, the live queue, health and alerts all answer from what was read last, and
say of when it is. What they want kept fresh they say too (`Scanner.want`); each process that has
such wishes reads, when it gets the turn (`turns.py`), the part that is the most overdue. A long
queue is read a thousand items at a time, with long rests between, so that not all of it may be
known yet; what is not known is never made up.

How many wait and are claimed comes from the service port's `/health`, which is cheap. Its count of
dead items is wrong after a retry, so those are counted by their list.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import cached_property, partial
from time import monotonic
from typing import Any, Literal, NamedTuple

from cachetools import LRUCache
from django.conf import settings
from django.utils.translation import gettext_noop
from redis.exceptions import RedisError

from gateway_project.core import clock, errors
from gateway_project.core.sentences import Sentence
from gateway_project.core.stores import redis
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.loops import Loop
from robin.queue import scan_store, seen, turns
from robin.queue.scan_store import REVISION, SIZES, TROUBLE, Facts, Part, ScanStore
from robin.queue.source import LISTS, PART_ITEMS, RobinSource, Source
from robin.queue.translate import Item
from robin.queue.turns import AT_ONCE, Turn, Turns, make_turns
from robin.upstream.client import may_go_on, robin

State = Literal["READY", "CLAIMED", "DEAD"]
STATES: tuple[State, ...] = ("READY", "CLAIMED", "DEAD")
FIRST = ("ALL:0", "CLAIMED:0", "DEAD:0")
WHOLE = "ALL"
"""To want this is to want every part."""
WATCH_POLLS = 2
"""Who did not ask again in so many polls has looked once, and does not watch."""
WANT_SECONDS = 60.0
"""So long after somebody asked it is read on, if Robin has not come to it yet."""
CALM_SECONDS = 60.0
"""How old it may be for who does not watch."""
KEEP_TURN_SECONDS = 3.0
LOOK_SECONDS = 0.5
BETWEEN_LOOKS_SECONDS = 3.0
"""At most so much lies between two looks at what was abandoned, whoever looks."""
SIZES_REST = 50
"""Sizes are asked for again after so many times as long as they took."""
QUICK_SECONDS = 0.3
"""A list that takes no longer is waited for, rather than to show what is old."""
CLAIMED_SECONDS = 2.0
"""So long a list of who is being delivered is taken to be of this moment."""
AGAIN_SECONDS = 1.0
"""What failed is not tried again for so long."""
OVERDUE_SECONDS = 60.0
OLD_SECONDS = 30.0
"""What is older is not shown when Robin fails: then that is said."""
REMEMBERED_PARTS = 4
"""The part that is looked at, one more, who is claimed and who is dead: some 5 MB at most."""
VIEWS_KEPT = 4
"""Of these parts, two at most in each."""
log = get_logger("gateway.live")
_loop = Loop("robin.scan")


class Reading(errors.UpstreamUnavailable):
    """It is not known yet: Robin is being asked, or will be, in `seconds`."""

    def __init__(self, detail: str | Sentence, *, seconds: float) -> None:
        super().__init__(detail, retry_after_seconds=max(1, min(600, round(seconds))))


class Claimed(NamedTuple):
    """Who was being delivered `at` that time, in Unix seconds; 0: nobody has looked yet."""

    uids: frozenset[str] = frozenset()
    at: float = 0.0

    @property
    def is_certain(self) -> bool:
        return clock.time() - self.at < CLAIMED_SECONDS


@dataclass
class View:
    """What is known of the queue. `parts` are those that were asked for, and are there."""

    facts: Mapping[str, Facts]
    parts: Mapping[str, Part]
    claimed: frozenset[str] = frozenset()
    dead: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        """Of items in any state, when the beginning of the list was read."""
        return int(self.facts["ALL:0"]["total"])

    @property
    def is_whole(self) -> bool:
        """Whether each part of the list was read, be it of another queue than the others."""
        return all(name in self.facts for name in parts_of("ALL", self.facts))

    @property
    def is_complete(self) -> bool:
        """Whether each item is known: nothing passed from one part into another, as far as can be
        told, between the readings of these parts."""
        if not self.is_whole:
            return False
        parts = sorted((self.facts[n] for n in parts_of("ALL", self.facts)), key=lambda f: f["at"])
        is_of_one_length = len({f.get("listed", f["total"]) for f in parts}) == 1
        return is_of_one_length and not any(f.get("moved") for f in parts[1:])

    @property
    def known(self) -> int:
        """How many items are known, twice those that moved between two parts meanwhile."""
        names = parts_of("ALL", self.facts)
        return sum(int(self.facts[name]["count"]) for name in names if name in self.facts)

    def as_of(self, names: Iterable[str] = ("ALL:0",)) -> float:
        """Unix seconds: of when the oldest of these parts is."""
        return min((self.facts[name]["at"] for name in names if name in self.facts), default=0.0)

    def totals(self) -> dict[str, int]:
        """`{total, ready, claimed, dead}`: each as it was last seen."""
        sizes, first = self.facts.get(SIZES), self.facts.get("ALL:0", {})
        dead = int(self.facts.get("DEAD:0", {}).get("total", 0))
        claimed = int(self.facts.get("CLAIMED:0", {}).get("total", 0))
        if sizes is not None and "ready" in sizes:
            ready, claimed = int(sizes["ready"]), int(sizes["claimed"])
            if "DEAD:0" not in self.facts:
                dead = max(0, int(first.get("total", 0)) - ready - claimed)
        else:
            ready = max(0, int(first.get("total", 0)) - claimed - dead)
        return {"total": ready + claimed + dead, "ready": ready, "claimed": claimed, "dead": dead}

    def retries(self) -> dict[str, int]:
        """How many items, of those that are known and not dead, were tried how often."""
        found: Counter[str] = Counter()
        for name in parts_of("ALL", self.facts):
            found.update(self.facts.get(name, {}).get("retries", {}))
        for name in parts_of("DEAD", self.facts):
            found.subtract(self.facts.get(name, {}).get("retries", {}))
        return {count: found[count] for count in sorted(found, key=int) if found[count] > 0}

    @cached_property
    def items(self) -> list[Item]:
        """Of the parts, in Robin's order, each once, with its state."""
        found: dict[str, Item] = {}
        for name in sorted(self.parts, key=lambda name: int(name.partition(":")[2])):
            for item in self.parts[name].items:
                if item["uid"] not in found:
                    found[item["uid"]] = self.with_state(item)
        return list(found.values())

    def with_state(self, item: Item) -> Item:
        state = self.state_of(item["uid"])
        return {**item, "state": state} if state is not None else item

    def state_of(self, uid: str) -> State | None:
        """None while it is not known who is claimed, or dead."""
        if uid in self.dead:
            return "DEAD"
        if uid in self.claimed:
            return "CLAIMED"
        return "READY" if self.knows_states else None

    @property
    def knows_states(self) -> bool:
        return "CLAIMED:0" in self.facts and "DEAD:0" in self.facts


def parts_of(kind: str, facts: Mapping[str, Facts]) -> list[str]:
    """All parts of that kind, as many as there should be; the first, where nothing is known."""
    total = int(facts.get(f"{kind}:0", {}).get("total", 0))
    return [f"{kind}:{n}" for n in range(max(1, -(-total // PART_ITEMS)))]


@dataclass
class _Wish:
    asked_at: float  # monotonic()
    age_seconds: float

    @property
    def is_over(self) -> bool:
        return monotonic() > self.asked_at + max(WANT_SECONDS, self.age_seconds)

    @property
    def age(self) -> float:
        """How old it may be now."""
        is_watched = monotonic() < self.asked_at + WATCH_POLLS * settings.QUEUE_POLL_SECONDS
        return self.age_seconds if is_watched else max(self.age_seconds, CALM_SECONDS)


@dataclass
class Scanner:
    """Of one process; lives in one event loop."""

    store: ScanStore = field(default_factory=scan_store.make_scan_store)
    turns: Turns = field(default_factory=make_turns)
    source: Source = field(default_factory=RobinSource)
    _wishes: dict[str, _Wish] = field(default_factory=dict)
    _task: asyncio.Task[None] | None = None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _last_facts: Mapping[str, Facts] = field(default_factory=dict)
    _remembered: LRUCache[str, tuple[Facts, Part]] = field(
        default_factory=lambda: LRUCache(REMEMBERED_PARTS)
    )
    """By name, and as unpacked: what is looked at most is not fetched and unpacked each time."""
    _views: LRUCache[tuple[str, ...], View] = field(default_factory=lambda: LRUCache(VIEWS_KEPT))
    """By what was asked for, as long as nothing was read or changed since."""
    _is_closed: bool = False
    _seen_busy: float = 0.0
    """For how long what was abandoned had gone on when it was seen last."""

    async def close(self) -> None:
        self._is_closed = True
        while self._task is not None and not self._task.done():
            # Again and again: a cancellation that meets redis-py's own timeout is swallowed by it.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=0.2)
        await self.store.close()
        await self.turns.close()

    # -- What is asked ----------------------------------------------------------------------------

    def want(self, *names: str, age_seconds: float | None = None) -> None:
        """Keep these fresh for a while. Nothing is awaited."""
        age = settings.QUEUE_POLL_SECONDS if age_seconds is None else age_seconds
        for name in names:
            wish = self._wishes.get(name)
            if wish is None or age <= wish.age or wish.is_over:
                self._wishes[name] = _Wish(monotonic(), age)
        self._woken.set()
        if not self._is_closed and (self._task is None or self._task.done()):
            # In a context of its own: it is nobody's request.
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(), context=Context())

    async def view(
        self, *names: str, age_seconds: float | None = None, is_loaded: bool = True
    ) -> View:
        """What is known, with these parts of the list (`WHOLE`: all of them).

        At once, unless nothing is known yet, or what is known is old and the list is a quick one.
        Raises `Reading` while the beginning is not known, or what `RobinAPI` raises when Robin
        failed and what is known is old.
        """
        self.want(*FIRST, SIZES, age_seconds=age_seconds)
        self.want(*(name for name in names if name != "ALL:0"), age_seconds=age_seconds)
        asked_at = monotonic()
        deadline = asked_at + settings.ROBIN_TIMEOUT_SECONDS
        while True:
            self._changed.clear()
            facts = await self._facts()
            wait = self._wait_seconds(facts, names, asked_at, deadline, age_seconds)
            if wait <= 0:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(min(wait, 0.1)):
                    await self._changed.wait()
        self._raise_if_unknown(facts, monotonic() - asked_at)
        wanted = parts_of("ALL", facts) if WHOLE in names else [*names]
        return await self._view(facts, wanted if is_loaded else [])

    async def each(
        self, view: View, *, begin: int = 0, end: int | None = None
    ) -> AsyncIterator[list[Item]]:
        """All items that are known, each once and with its state, a part at a time: of all parts,
        or of those from number `begin` to `end`."""
        seen_uids: set[str] = set()
        for name in parts_of("ALL", view.facts)[begin:end]:
            read = await self._parts(view.facts, [name], is_kept=False)
            items = [i for i in _items(read.get(name)) if i["uid"] not in seen_uids]
            seen_uids.update(item["uid"] for item in items)
            yield [view.with_state(item) for item in items]

    async def known(self) -> View | None:
        """What is known, without wanting more; None for nothing. Without parts."""
        facts = await self._facts()
        return View(facts, {}) if "ALL:0" in facts or SIZES in facts else None

    async def last_known(self) -> View | None:
        """What was read last, however long ago, with states; None for nothing. Wants nothing."""
        facts = await self._facts()
        return await self._view(facts, []) if "ALL:0" in facts else None

    def _wait_seconds(
        self,
        facts: Mapping[str, Facts],
        names: Sequence[str],
        asked_at: float,
        deadline: float,
        age_seconds: float | None,
    ) -> float:
        """How long it is worth to wait for what is coming."""
        left = deadline - monotonic()
        wanted = parts_of("ALL", facts) if WHOLE in names else names
        needed = [*FIRST, SIZES, *wanted]
        trouble = facts.get(TROUBLE)
        if trouble is not None and trouble["at"] >= clock.time() - (monotonic() - asked_at):
            return 0.0  # it was tried since then
        if "ALL:0" not in facts:
            return left
        took = max((f.get("took", 0.0) for f in facts.values()), default=0.0)
        if took <= QUICK_SECONDS and not all(name in facts for name in FIRST):
            return left  # whose state is what is known in a moment
        age = settings.QUEUE_POLL_SECONDS if age_seconds is None else age_seconds
        is_old = any(name not in facts or clock.time() - facts[name]["at"] > age for name in needed)
        quick_left = asked_at + 3 * QUICK_SECONDS - monotonic()
        return quick_left if is_old and took <= QUICK_SECONDS else 0.0

    def _raise_if_unknown(self, facts: Mapping[str, Facts], waited: float) -> None:
        first, trouble = facts.get("ALL:0"), facts.get(TROUBLE)
        is_old = first is None or clock.time() - first["at"] > OLD_SECONDS
        if trouble is not None and is_old and (first is None or trouble["at"] > first["at"]):
            raise _error_of(trouble)
        if first is None:
            raise Reading(
                gettext_noop(
                    "Robin's queue is being read for the first time, which takes as long as it is "
                    "long. Try again after Retry-After seconds."
                ),
                seconds=max(5.0, 2 * waited),
            )

    async def _view(self, facts: Mapping[str, Facts], names: Collection[str]) -> View:
        known = self._views.get((*names,))
        if known is not None and known.facts == facts:
            return known
        overlays = [*parts_of("CLAIMED", facts), *parts_of("DEAD", facts)]
        read = await self._parts(facts, [*names, *overlays])
        uids = {
            kind: frozenset(i["uid"] for n in parts_of(kind, facts) for i in _items(read.get(n)))
            for kind in ("CLAIMED", "DEAD")
        }
        parts = {name: read[name] for name in names if name in read}
        view = View(facts, parts, uids["CLAIMED"] - uids["DEAD"], uids["DEAD"])
        is_small = len(names) <= REMEMBERED_PARTS // 2  # a page may lie in two
        shown = [*names, *overlays]
        if is_small and all(REVISION in facts.get(name, {}) and name in read for name in shown):
            self._views[*names,] = view
        return view

    async def _facts(self) -> Mapping[str, Facts]:
        try:
            self._last_facts = await self.store.facts()
        except (RedisError, OSError) as exc:
            if "ALL:0" not in self._last_facts:
                raise errors.StoreUnavailable from exc
        return self._last_facts

    async def _parts(
        self, facts: Mapping[str, Facts], names: Collection[str], *, is_kept: bool = True
    ) -> dict[str, Part]:
        """Those that there are; while the store is away, those that are remembered."""
        found = {}
        for name in names:
            of, part = self._remembered.get(name, ({}, None))
            if part is not None and of == facts.get(name):
                found[name] = part
        missing = [name for name in names if name not in found]
        if missing:
            with suppress(RedisError, OSError):
                found |= await self._stored(missing)
        for name in missing if is_kept else ():
            if name in found and REVISION in facts.get(name, {}):
                self._remembered[name] = facts[name], found[name]
        return found

    async def _stored(self, names: Collection[str]) -> dict[str, Part]:
        """Those of the store, unpacked in a thread. Raises what the store raises."""
        return await asyncio.to_thread(_unpacked, await self.store.parts(names))

    async def seconds_until_free(self) -> float | None:
        """How long somebody's list will still keep Robin; None while nobody reads one."""
        try:
            taken, facts = await self.turns.taken_seconds(), await self.store.facts()
        except (RedisError, OSError):
            return None
        if taken is None:
            return None
        took = max((f.get("took", 0.0) for f in facts.values()), default=0.0)
        if taken > max(OVERDUE_SECONDS, 3 * took):
            return None  # that is no list any more, but a server that hangs
        return max(1.0, took - taken)

    # -- Who reads --------------------------------------------------------------------------------

    async def _run(self) -> None:
        """As long as somebody wants something."""
        while self._wishes:
            self._woken.clear()
            try:
                wait = await self.step()
            except Exception as exc:
                log.error("queue_scan_failed", error=type(exc).__name__, exc_info=exc)
                wait = 1.0
                await _loop.afailed(exc)
            else:
                await _loop.asucceeded()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.02, min(wait, 1.0))):
                    await self._woken.wait()
                    await asyncio.sleep(0.02)

    async def step(self) -> float:
        """Read what is the most overdue, if it may be; seconds until there may be more to do."""
        self._wishes = {name: w for name, w in self._wishes.items() if not w.is_over}
        try:
            facts = await self.store.facts()
            wait = await self._read_sizes(facts)
            due, later = self._overdue(facts)
            if due is None:
                return min(wait, later)
            turn = await self.turns.begin()
            if turn.state == "abandoned":
                await self.settle(turn)
                return LOOK_SECONDS
            if turn.state != "mine":
                return min(wait, turn.seconds if turn.state == "resting" else LOOK_SECONDS)
            others = [name for name in FIRST if name != due and self._is_due(name)]
            await self._read(due, *others)
        except (RedisError, OSError) as exc:
            log.warning("queue_store_away", error=type(exc).__name__)
            return 1.0
        finally:
            self._changed.set()
        return 0.0

    async def read_once(self, name: str, *, age_seconds: float) -> Part | None:
        """One part, read now if what is known is older; None when Robin has to rest first.

        Raises what the source raises, and `redis.RedisError` or `OSError`.
        """
        facts = await self.store.facts()
        if name not in facts or clock.time() - facts[name]["at"] > age_seconds:
            turn = await self.turns.begin()
            if turn.state == "abandoned":
                await self.settle(turn)
            if turn.state != "mine":
                return None
            await self._read(name)
            facts = await self.store.facts()
            trouble = facts.get(TROUBLE)
            if trouble is not None and (name not in facts or trouble["at"] > facts[name]["at"]):
                raise _error_of(trouble)
        return Part.unpacked((await self.store.parts([name])).get(name))

    def _is_due(self, name: str) -> bool:
        """Whether somebody wants it fresh; the first parts are best of one moment."""
        return name in self._wishes

    def _overdue(self, facts: Mapping[str, Facts]) -> tuple[str | None, float]:
        """The part to read next; or None, and how long nothing is."""
        now, found = clock.time(), []
        later = 1.0
        if TROUBLE in facts and (since := now - facts[TROUBLE]["at"]) < AGAIN_SECONDS:
            return None, AGAIN_SECONDS - since
        for name, age_seconds in self._expanded(facts).items():
            if name not in facts:
                rank = FIRST.index(name) - 10.0 if name in FIRST else -1.0
                found.append((rank, name))
                continue
            age = now - facts[name]["at"]
            if age >= age_seconds:
                # What most people look at comes round more often.
                found.append((1 / (1 + age * (4 if name in FIRST else 1)), name))
            else:
                later = min(later, age_seconds - age)
        return (min(found)[1], 0.0) if found else (None, later)

    def _expanded(self, facts: Mapping[str, Facts]) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, wish in self._wishes.items():
            if name == WHOLE:
                names = parts_of("ALL", facts)
            elif name in FIRST:
                kind = name.partition(":")[0]
                names = [name] if kind == "ALL" else parts_of(kind, facts)
            elif name in parts_of("ALL", facts):
                names = [name]
            else:
                continue  # sizes; or a part of a queue that is shorter by now
            for one in names:
                found[one] = min(wish.age, found.get(one, wish.age))
        return found

    async def settle(self, abandoned: Turn) -> None:
        """If Robin is done with what was abandoned, let it rest for as long as that took.

        When it was done nobody knows, unless somebody saw it busy: whoever had the turn may have
        stood still for an hour, or be started anew after a night. So no more is counted than was
        seen, or than a list may take.
        """
        if not await self.source.is_free():
            self._seen_busy = abandoned.seconds
            return
        took = max((f.get("took", 0.0) for f in (await self.store.facts()).values()), default=0.0)
        most = max(self._seen_busy + BETWEEN_LOOKS_SECONDS, 2 * took or OVERDUE_SECONDS)
        self._seen_busy = 0.0
        await self.turns.settle(min(abandoned.seconds, most))

    async def _keep_turn(self) -> None:
        while True:
            await asyncio.sleep(KEEP_TURN_SECONDS)
            with suppress(RedisError, OSError):
                await self.turns.keep()

    # -- Sizes ------------------------------------------------------------------------------------

    async def _read_sizes(self, facts: Mapping[str, Facts]) -> float:
        """Ask for them if it is time; seconds until it is."""
        wish, known = self._wishes.get(SIZES), facts.get(SIZES)
        if wish is None:
            return 1.0
        if known is not None:
            rest = max(wish.age, SIZES_REST * known.get("took", 0.0))
            left = known["at"] + rest - clock.time()
            if left > 0:
                return float(left)
        if await self.turns.taken_seconds() is not None:
            return LOOK_SECONDS  # it would wait for the list, and all of its port with it
        await self.read_sizes()
        return 1.0

    async def read_sizes(self) -> Facts:
        """`{at, took, ready?, claimed?, dead?}`; kept, also when Robin gave none."""
        at, began = clock.time(), monotonic()
        found: Facts = {"at": at}
        with suppress(errors.GatewayError):
            health = await self.source.health()
            queue = health.get("queue") if isinstance(health, dict) else None
            if isinstance(queue, dict):
                names = ("ready", "claimed", "dead")
                found |= {name: queue[name] for name in names if _is_count(queue.get(name))}
        found["took"] = monotonic() - began
        await self.store.put(SIZES, found)
        return found

    # -- Lists ------------------------------------------------------------------------------------

    async def _read(self, name: str, *others: str) -> None:
        """Read a part, and `others` as long as it goes quickly; end the turn."""
        keeping = asyncio.create_task(self._keep_turn())
        spent, is_done = 0.0, True
        try:
            sizes = await self.read_sizes()
            spent += sizes["took"]
            for one in (name, *others):
                if one != name and spent > QUICK_SECONDS:
                    break
                began = monotonic()
                try:
                    part = await self._listed(one, sizes)
                except errors.GatewayError as error:
                    is_done = not may_go_on(error)
                    trouble = {"at": clock.time(), "code": error.code, "detail": str(error.detail)}
                    await self.store.put(TROUBLE, trouble)
                    return
                finally:
                    took = monotonic() - began
                    spent += took
                await self._keep(one, part, took)
        except asyncio.CancelledError:
            is_done = False
            raise
        finally:
            keeping.cancel()
            # Shielded: whoever is cancelled here must not leave the turn to its end.
            ending = self.turns.end(spent) if is_done else self.turns.leave()
            with suppress(RedisError, OSError):
                await asyncio.shield(ending)

    async def _listed(self, name: str, sizes: Facts) -> Part:
        kind, _, number = name.partition(":")
        if kind != "ALL" and sizes.get(kind.lower()) == 0:
            return Part(sizes["at"], 0, [])  # no need to ask
        at = clock.time()
        listing = await self.source.read_list(kind, int(number))
        return Part(at, listing.total, listing.items)

    async def _known_times(self, name: str) -> dict[str, int]:
        """When the items of this part, and of its neighbours, were first seen: most are known."""
        number = int(name.partition(":")[2])
        names = [f"ALL:{n}" for n in (number, number + 1, number - 1) if n >= 0]
        read = await self._stored(names)
        return {i["uid"]: i["firstSeenTime"] for part in read.values() for i in part.items}

    async def _keep(self, name: str, part: Part, took: float) -> None:
        kind = name.partition(":")[0]
        before = await self.store.facts()
        position = {"listed": part.total, "first": part.items[0]["uid"] if part.items else ""}
        # What begins with another item than before: some have left, or entered, another part.
        position["moved"] = position["first"] != before.get(name, {}).get(
            "first", position["first"]
        )
        part = await self._with_acts(kind, part)
        if kind == "ALL":
            known = await self._known_times(name)
            part = part._replace(items=await seen.first_seen(part.items, known, at=part.at))
        facts = _facts_of(part, took) | position
        await self.store.put(name, facts, await asyncio.to_thread(part.packed))
        if name.endswith(":0"):
            await self._drop_beyond(kind, part.total, before)
        if kind == "ALL":
            after = {**before, name: facts}
            if View(after, {}).is_whole:
                await self._forget_gone(after)
            if TROUBLE in before:
                await self.store.drop([TROUBLE])

    async def _drop_beyond(self, kind: str, total: int, facts: Mapping[str, Facts]) -> None:
        there = {f"{kind}:{n}" for n in range(max(1, -(-total // PART_ITEMS)))}
        gone = [n for n in facts if n.startswith(f"{kind}:") and n not in there]
        await self.store.drop(gone)

    async def _forget_gone(self, facts: Mapping[str, Facts]) -> None:
        names = parts_of("ALL", facts)
        read = await self._stored(names)
        uids = {i["uid"] for part in read.values() for i in part.items}
        times = [facts[name]["at"] for name in names]
        await seen.forget_all_but(uids, round_seconds=max(times) - min(times))

    # -- What we did ------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, *, seconds: float, owing_seconds: float = AT_ONCE) -> AsyncIterator[None]:
        """Have Robin's queue for oneself, though it has not rested yet; it rests longer then.

        Raises `Reading` when somebody else keeps it for more than `seconds`, or it is owed more.
        """
        until = monotonic() + seconds
        while True:
            try:
                turn = await self.turns.begin(owing_seconds=owing_seconds)
                if turn.state == "abandoned":
                    await self.settle(turn)
            except (RedisError, OSError) as exc:
                raise errors.StoreUnavailable from exc
            if turn.state == "mine":
                break
            if monotonic() > until:
                left = await self.seconds_until_free()
                raise Reading(
                    gettext_noop(
                        "Nothing was done: Robin reads out its queue, and does nothing else "
                        "meanwhile. Try again after Retry-After seconds."
                    ),
                    seconds=left or 5.0,
                )
            await asyncio.sleep(0.1)
        began, is_done = monotonic(), True
        try:
            yield
        except errors.GatewayError as error:
            is_done = not may_go_on(error)
            raise
        except asyncio.CancelledError:
            is_done = False
            raise
        finally:
            ending = self.turns.end(monotonic() - began) if is_done else self.turns.leave()
            with suppress(RedisError, OSError):
                await asyncio.shield(ending)

    async def claimed(self) -> Claimed:
        """Of this moment, if a list of them is a quick one and Robin's time allows it: it is owed
        the rest after one such list at most. Else as it was read last."""
        try:
            if await self.turns.taken_seconds() is None:
                sizes = await self.read_sizes()
                if sizes.get("claimed") == 0:
                    return Claimed(frozenset(), sizes["at"])
            facts = await self.store.facts()
            took = max((f.get("took", 0.0) for f in facts.values()), default=0.0)
            if took <= QUICK_SECONDS and not _claimed(facts, {}).is_certain:
                owing = turns.rest_seconds(took)
                with suppress(errors.GatewayError):
                    async with self.turn(seconds=QUICK_SECONDS, owing_seconds=owing):
                        began = monotonic()
                        part = await self._listed("CLAIMED:0", {"at": 0.0})
                    await self._keep("CLAIMED:0", part, monotonic() - began)
                facts = await self.store.facts()
            return _claimed(facts, await self._stored(parts_of("CLAIMED", facts)))
        except (RedisError, OSError) as exc:
            raise errors.StoreUnavailable from exc

    async def known_items(self, uids: Collection[str]) -> list[Item]:
        """Those of them that are known, as they are known."""
        wanted = frozenset(uids)
        facts = await self._facts()
        read = await self._parts(facts, parts_of("ALL", facts), is_kept=False)
        return [item for part in read.values() for item in part.items if item["uid"] in wanted]

    async def acted(
        self, action: str, uids: Collection[str], *, done: int, want_again: bool = True
    ) -> None:
        """It was done to `done` of these: show it so of those that are known."""
        with suppress(RedisError, OSError):
            if done:
                await self._show(action, frozenset(uids))
            await self.store.drop([SIZES])
        if want_again:
            self.want(*FIRST, SIZES)

    async def _show(self, action: str, uids: frozenset[str]) -> None:
        at = clock.time()
        await self.store.acted(dict.fromkeys(uids, f"{action} {at}"))
        acts = dict.fromkeys(uids, (action, at + 1))
        facts = await self.store.facts()
        for kind in LISTS:
            for name in parts_of(kind, facts):
                await self._amend(name, partial(_after, kind, acts=acts))
        if action == "bounce":
            died = await self.known_items(uids)
            await self._amend("DEAD:0", partial(_with_dead, died=died))

    async def _amend(self, name: str, change: Callable[[Part], Part]) -> None:
        for _ in range(3):  # somebody else may have changed it meanwhile
            old = (await self.store.parts([name])).get(name)
            part = await asyncio.to_thread(Part.unpacked, old)
            if old is None or part is None:
                return
            new = change(part)
            if new == part:
                return
            new = new._replace(is_amended=True)
            before = (await self.store.facts()).get(name, {})
            after = {**before, **_facts_of(new, before.get("took", 0.0))}
            packed = await asyncio.to_thread(new.packed)
            if await self.store.replace(name, old, packed, after):
                return

    async def _with_acts(self, kind: str, part: Part) -> Part:
        """What somebody did while this was being read may not be in it."""
        found = await self.store.acts([item["uid"] for item in part.items])
        acts = {}
        for uid, stamp in found.items():
            action, _, at = stamp.partition(" ")
            if float(at) > part.at:
                acts[uid] = (action, float(at))
        new = _after(kind, part, acts)
        return new._replace(is_amended=new != part)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _unpacked(found: Mapping[str, bytes]) -> dict[str, Part]:
    read = {name: Part.unpacked(content) for name, content in found.items()}
    return {name: part for name, part in read.items() if part is not None}


def _claimed(facts: Mapping[str, Facts], read: Mapping[str, Part]) -> Claimed:
    uids = frozenset(item["uid"] for part in read.values() for item in part.items)
    return Claimed(uids, facts.get("CLAIMED:0", {"at": 0.0})["at"])


def _items(part: Part | None) -> list[Any]:
    return part.items if part is not None else []


def _facts_of(part: Part, took: float) -> Facts:
    retries = Counter(str(item["retryCount"]) for item in part.items)
    facts: Facts = {"at": part.at, "total": part.total, "count": len(part.items), "took": took}
    return {**facts, "retries": dict(retries), "amended": part.is_amended}


def _after(kind: str, part: Part, acts: Mapping[str, tuple[str, float]]) -> Part:
    """The part as it is after what was done, after it was read, to some of its items."""
    if not acts:
        return part
    items: list[Any] = []
    for item in part.items:
        action, at = acts.get(item["uid"], ("", 0.0))
        if action == "delete" or (
            kind != "ALL" and action and (kind, action) != ("DEAD", "bounce")
        ):
            continue
        if kind == "ALL" and action == "retry":
            count = item["retryCount"] + 1
            item = {**item, "retryCount": count, "lastRetryTime": int(at) * 1000}
        items.append(item)
    return part._replace(total=max(0, part.total - (len(part.items) - len(items))), items=items)


def _with_dead(part: Part, died: Iterable[Item]) -> Part:
    known = {item["uid"] for item in part.items}
    more = {i["uid"]: i["retryCount"] for i in died if i["uid"] not in known}
    rows = [{"uid": uid, "retryCount": count} for uid, count in more.items()]
    return part._replace(total=part.total + len(rows), items=[*part.items, *rows])


def _error_of(trouble: Facts) -> errors.GatewayError:
    kinds: dict[str, type[errors.GatewayError]] = {
        one.code: one
        for one in (errors.UpstreamUnavailable, errors.UpstreamTimedOut, errors.UpstreamUnexpected)
    }
    return kinds.get(trouble.get("code", ""), errors.UpstreamUnavailable)(trouble.get("detail"))


_scanner: Scanner | None = None


async def open_scanner() -> Scanner:
    """Make this process' reader; called once, in the lifespan, after `open_robin`."""
    global _scanner
    _scanner = Scanner()
    ports = robin()
    ports.client.seconds_until_free = ports.service.seconds_until_free = _scanner.seconds_until_free
    return _scanner


async def close_scanner() -> None:
    global _scanner
    if _scanner is not None:
        await _scanner.close()
        _scanner = None


def is_open() -> bool:
    return _scanner is not None


def scanner() -> Scanner:
    """The reader that the lifespan opened; 503 where no Robin is configured."""
    robin()  # says so
    if _scanner is None:
        raise errors.UpstreamUnavailable
    return _scanner


def forget() -> None:
    """For tests: nothing was ever read."""
    scan_store.forget()
    turns.forget()
    if settings.REDIS_URL:
        client = redis.client()
        for key in client.scan_iter("gw:queue:*", count=10_000):
            client.delete(key)
