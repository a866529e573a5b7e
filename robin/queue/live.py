"""The queue as it changes, for everybody who watches it at `/ws/queue`.

One process of the installation asks Robin (`leader.py` says which), and only while somebody
watches. What changed goes over the channel layer to the `Hub` of each process, which encodes
nothing again: the same text goes to all of its clients. A message that is missing shows by its
number; the hub then reads the stored snapshot and sends it to its clients.

    snapshot   {type, seq, at, totals, items}                    the first 1,000 items
    diff       {type, seq, at, totals, added, changed, removed}  `removed` are uids
    heartbeat  {type, seq, at, totals}                           nothing changed
    action     {type, seq, at, id, action, state, …}             how far an action on many is
    status     {type, seq, at, status, message}                  `up`, `down` (Robin), `stale` (we),
                                                                 `busy` (a long queue, not read yet)

`at` is of when the queue was so: a long one is read seldom (`scan.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple, cast
from uuid import UUID

import orjson
from channels.layers import get_channel_layer
from django.conf import settings
from redis.exceptions import RedisError

from accounts.authentication import ALL, BUS_DISCONNECTED_TTL
from gateway_project.core import clock, errors
from gateway_project.core.clock import utc_text
from gateway_project.core.stores.bus import bus
from gateway_project.core.stores.refused import UNFIT
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.loops import Loop
from gateway_project.core.telemetry.metrics import live_clients, live_polls
from robin.access import authentication
from robin.access.authentication import Member
from robin.permissions import Permission
from robin.queue import scan
from robin.queue.leader import MESSAGE_BYTES_MAX, MESSAGES_MAX, LeaderLock, make_leader_lock

GROUP = "robin.queue"
ITEMS_MAX = 1000
UNSENT_MAX = 8  # messages that may wait for one client: 40 s of a busy queue
TICK_SECONDS = 0.25
RENEW_SECONDS = 1.0
FETCH_SECONDS_MAX = 10.0
STALE_POLLS = 3
STATUS_SECONDS = 15.0
JOBS_CHANNEL = "queue-jobs"
VERSION = 1  # of what processes tell and leave each other
STALE = "stale"
EXPIRED, FORBIDDEN, TOO_SLOW, TOO_MANY = 4401, 4403, 4408, 4429
log = get_logger("gateway.live")
_loop, _guard_loop = Loop("robin.live"), Loop("robin.live.guard")
Item = dict[str, Any]


class Queue(NamedTuple):
    """What Robin has now. `items` as `/api/v1/queue/json` shows them, each with its `uid`."""

    items: list[Item]
    totals: dict[str, int]
    """`total, ready, claimed, dead`."""

    as_of: str = ""
    """Of when that is; empty: of now."""


Fetch = Callable[[], Awaitable[Queue]]


fetch_queue: Fetch | None = None
"""Where this installation's queue comes from, set before the process starts; None: nowhere, and
`/ws/queue` is not there. It raises whatever Robin's client raises."""


@dataclass
class Snapshot:
    """The queue at one number."""

    seq: int
    at: str
    totals: dict[str, int]
    items: dict[str, Item]

    def json(self) -> bytes:
        items = [*self.items.values()]
        return orjson.dumps(
            {"v": VERSION, "seq": self.seq, "at": self.at, "totals": self.totals, "items": items}
        )

    @classmethod
    def of(cls, text: bytes | None) -> Snapshot | None:
        """None where nothing is stored, what a later version stored, or nothing that can be read.

        The last would be read again in every turn, and nobody told anything, until it expires.
        """
        try:
            raw: dict[str, Any] = orjson.loads(text) if text is not None else {"v": 0}
            if raw.get("v", VERSION) != VERSION:
                return None
            items = {item["uid"]: item for item in raw["items"]}
            return cls(int(raw["seq"]), raw["at"], raw["totals"], items)
        except UNFIT as exc:
            log.error("live_snapshot_unreadable", error=type(exc).__name__)
            return None

    def difference(self, queue: Queue, at: str) -> dict[str, Any] | None:
        """The `diff` from here to `queue`; None when nothing changed."""
        items = {item["uid"]: item for item in queue.items[:ITEMS_MAX]}
        added = [item for uid, item in items.items() if uid not in self.items]
        removed = [uid for uid in self.items if uid not in items]
        changed = [
            item for uid, item in items.items() if uid in self.items and self.items[uid] != item
        ]
        if not (added or removed or changed or queue.totals != self.totals):
            return None
        return {
            "type": "diff",
            "seq": self.seq + 1,
            "at": at,
            "totals": queue.totals,
            "added": added,
            "changed": changed,
            "removed": removed,
        }

    def apply(self, diff: dict[str, Any]) -> None:
        for uid in diff["removed"]:
            self.items.pop(uid, None)
        for item in (*diff["changed"], *diff["added"]):
            self.items[item["uid"]] = item
        self.seq, self.at, self.totals = diff["seq"], diff["at"], diff["totals"]


@dataclass(eq=False)
class Client:
    """One socket. `send` waits while the client does not read; `close(code)` must not."""

    member: Member
    valid_until: float  # Unix seconds
    send: Callable[[str], Awaitable[None]]
    close: Callable[[int], Awaitable[None]]
    since: int | None = None
    unsent: asyncio.Queue[str] = field(default_factory=lambda: asyncio.Queue(UNSENT_MAX))
    has_initial: bool = False
    is_gone: bool = False
    tasks: list[asyncio.Task[None] | asyncio.TimerHandle] = field(default_factory=list)

    def begin(self) -> None:
        loop = asyncio.get_running_loop()
        self.tasks = [
            loop.create_task(self._deliver()),
            loop.call_later(max(0.0, self.valid_until - clock.time()), self.drop, EXPIRED),
        ]

    def end(self) -> None:
        self.is_gone = True
        for task in self.tasks:
            task.cancel()

    async def _deliver(self) -> None:
        while True:
            await self.send(await self.unsent.get())

    def offer(self, text: str) -> None:
        """Send `text` when the client is ready; one that is not for too long is dropped."""
        if self.is_gone:
            return
        try:
            self.unsent.put_nowait(text)
        except asyncio.QueueFull:
            self.drop(TOO_SLOW)

    def drop(self, code: int) -> None:
        if self.is_gone:
            return
        self.end()
        log.info("live_client_dropped", code=code, session=str(self.member.session_id))
        self.tasks = [asyncio.get_running_loop().create_task(self._close(code))]

    async def _close(self, code: int) -> None:
        with suppress(Exception):  # it may be gone already; then it needs no closing
            await self.close(code)


class Hub:
    """The clients of this process and what they know. Lives in one event loop."""

    def __init__(self, fetch: Fetch, *, lock: LeaderLock | None = None) -> None:
        self.fetch = fetch
        self.clients: set[Client] = set()
        self._lock = lock or make_leader_lock()
        self._snapshot: Snapshot | None = None
        self._messages: deque[tuple[int, str]] = deque(maxlen=MESSAGES_MAX)
        self._snapshot_message: tuple[int, str] = (-1, "")
        self._fencing_token = 0
        self._status = ""  # the last status that is not `up`, as text
        self._status_sent_at = 0.0
        self._received_at = 0.0
        self._is_awake = False
        self._tasks: list[asyncio.Task[None]] = []
        self._resting: asyncio.Task[None] | None = None
        self._to_recheck: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receiving: asyncio.Future[dict[str, Any]] | None = None

    # -- Clients ----------------------------------------------------------------------------------

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        authentication.on_forget(self._recheck_later)

    async def shut(self) -> None:
        for client in list(self.clients):
            self.leave(client)
        if self._resting is not None:
            await self._resting
        await self._rest()
        await self._lock.close()
        authentication.off_forget(self._recheck_later)
        self._loop = None

    def join(self, client: Client) -> None:
        """From here on `client` is told; first a snapshot, or what it missed since `since`."""
        self.clients.add(client)
        live_clients.inc()
        client.begin()
        if not self._tasks:
            self._wake()
        if self._snapshot is not None and self._is_awake:
            self._send_initial(client)
        # A message about this session may have come between its look-up and now.
        self._to_recheck.add(str(client.member.session_id))

    def sockets_of(self, user_id: UUID) -> int:
        return sum(client.member.user_id == user_id for client in self.clients)

    def leave(self, client: Client) -> None:
        if client in self.clients:
            self.clients.discard(client)
            live_clients.dec()
            if not client.is_gone:
                client.end()
        if not self.clients and self._tasks:
            self._resting = asyncio.get_running_loop().create_task(self._rest())

    def _send_initial(self, client: Client) -> None:
        client.has_initial = True
        missed = self._missed_since(client.since)
        if missed is None:
            client.offer(self._snapshot_text())
        elif missed:
            client.offer(orjson.dumps(merged([orjson.loads(text) for text in missed])).decode())
        else:
            client.offer(self._text("heartbeat"))
        if self._status:
            client.offer(self._status)

    def _missed_since(self, since: int | None) -> list[str] | None:
        """The differences after `since`; None when they are not all here."""
        if since is None or self._snapshot is None or since > self._snapshot.seq:
            return None
        if since == self._snapshot.seq:
            return []
        missed = [text for seq, text in self._messages if seq > since]
        return missed if len(missed) == self._snapshot.seq - since else None

    def _snapshot_text(self) -> str:
        assert self._snapshot is not None  # noqa: S101
        if self._snapshot_message[0] != self._snapshot.seq:
            items = [*self._snapshot.items.values()]
            self._snapshot_message = (self._snapshot.seq, self._text("snapshot", items=items))
        return self._snapshot_message[1]

    def _text(self, kind: str, **more: Any) -> str:
        assert self._snapshot is not None  # noqa: S101
        p = self._snapshot
        base = {"type": kind, "seq": p.seq, "at": p.at, "totals": p.totals}
        return orjson.dumps({**base, **more}).decode()

    def _broadcast(self, text: str) -> None:
        for client in list(self.clients):
            if client.has_initial:
                client.offer(text)

    # -- What is heard ----------------------------------------------------------------------------

    def _wake(self) -> None:
        loop = asyncio.get_running_loop()
        self._received_at, self._is_awake = monotonic(), False
        work = (self._listen(), self._lead(), self._guard())
        self._tasks = [loop.create_task(w) for w in work]

    async def _rest(self) -> None:
        if self.clients or not self._tasks:
            return  # somebody came meanwhile
        tasks, self._tasks = set(self._tasks), []
        while tasks:
            # Again and again: a cancellation that meets redis-py's own timeout is swallowed by it.
            for task in tasks:
                task.cancel()
            _, tasks = await asyncio.wait(tasks, timeout=TICK_SECONDS)
        if not self._tasks:
            with suppress(RedisError, OSError):
                await self._lock.release()

    async def _listen(self) -> None:
        layer = cast(Any, get_channel_layer())
        while True:
            channel = ""
            try:
                channel = await layer.new_channel()
                await layer.group_add(GROUP, channel)
                await self._read_again()  # only now: what is said from here on is heard
                self._is_awake = True
                self._send_initial_to_all()
                while True:
                    await self._on_message(await self._receive(layer, channel))
                    self._send_initial_to_all()
            except Exception as exc:  # noqa: BLE001 - whatever broke it: listen again
                log.warning("live_layer_lost", error=type(exc).__name__)
                with suppress(Exception):  # its connections, which may be silent for ever
                    await layer.flush()
            finally:
                if channel:
                    with suppress(RedisError, OSError):
                        await layer.group_discard(GROUP, channel)
            await asyncio.sleep(RENEW_SECONDS)

    async def _receive(self, layer: Any, channel: str) -> dict[str, Any]:
        """The next message; raises `ConnectionError` when the layer may have lost some."""
        receiving = self._receiving = asyncio.ensure_future(layer.receive(channel))
        try:
            await asyncio.wait([receiving])
        finally:
            receiving.cancel()
        if receiving.cancelled():
            raise ConnectionError("the bus had a gap")
        message: dict[str, Any] = receiving.result()
        return message

    def listen_again(self) -> None:
        """The bus asks Redis whether it is there; the layer does not, and would wait for ever."""
        if self._receiving is not None:
            self._receiving.cancel()

    def _send_initial_to_all(self) -> None:
        for client in list(self.clients):
            if not client.has_initial and self._snapshot is not None:
                self._send_initial(client)

    async def _on_message(self, message: dict[str, Any]) -> None:
        if message["fence"] < self._fencing_token:
            return  # of somebody who does not lead any more
        if message.get("v", VERSION) != VERSION:
            return  # of a later version; `stale` says that nobody understood is asking
        is_new_term = message["fence"] > self._fencing_token
        self._fencing_token, self._received_at = message["fence"], monotonic()
        kind, seq, text, snapshot = message["kind"], message["seq"], message["text"], self._snapshot
        if kind == "status":
            self._on_status(text)
            return
        if STALE in self._status:
            self._status = ""
            self._broadcast(status_text("up", "Robin is asked again.", seq))
        if snapshot is not None and kind == "diff" and seq == snapshot.seq + 1:
            snapshot.apply(orjson.loads(text))
            if len(text) > MESSAGE_BYTES_MAX:
                self._messages.clear()
            else:
                self._messages.append((seq, text))
            self._broadcast(text)
        elif snapshot is not None and kind == "heartbeat" and seq == snapshot.seq:
            snapshot.at = orjson.loads(text)["at"]
            self._broadcast(text)
        # Numbers only go back when Redis was set back, and then a term began.
        elif snapshot is None or seq > snapshot.seq or (is_new_term and seq != snapshot.seq):
            await self._read_again()

    def _on_status(self, text: str) -> None:
        """Who watches is told once, and then again from time to time, as a sign of life."""
        status = orjson.loads(text)["status"]
        before = orjson.loads(self._status)["status"] if self._status else "up"
        self._status = "" if status == "up" else text
        if status != before or monotonic() - self._status_sent_at > STATUS_SECONDS:
            self._status_sent_at = monotonic()
            self._broadcast(text)

    async def _read_again(self) -> None:
        """A message was missed, or this is the first: send everybody the stored snapshot."""
        found = await self._lock.found()
        snapshot = Snapshot.of(found.snapshot)
        if snapshot is None:
            return
        before, self._snapshot = self._snapshot, snapshot
        self._snapshot_message = (-1, "")
        self._messages.clear()
        try:
            self._messages.extend((orjson.loads(w)["seq"], w.decode()) for w in found.messages)
        except UNFIT as exc:  # whoever missed some of them gets the snapshot
            log.error("live_messages_unreadable", error=type(exc).__name__)
            self._messages.clear()
        if before is None or before.seq != self._snapshot.seq:
            for client in list(self.clients):
                if client.has_initial:
                    client.offer(self._snapshot_text())

    def tell_of_job(self, note: str) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed() and self.clients:
            loop.call_soon_threadsafe(self._tell_of_job, note)

    def _tell_of_job(self, note: str) -> None:
        seq = self._snapshot.seq if self._snapshot is not None else 0
        try:
            text = orjson.dumps({"type": "action", "seq": seq, "at": _now(), **orjson.loads(note)})
        except UNFIT as exc:
            log.error("queue_job_note_unreadable", error=type(exc).__name__)
            return
        self._broadcast(text.decode())

    # -- Who asks ---------------------------------------------------------------------------------

    async def _lead(self) -> None:
        leader = Leader(self._lock, self.fetch)
        try:
            while True:
                try:
                    await leader.turn()
                except (RedisError, OSError) as exc:
                    log.warning("live_lock_lost", error=type(exc).__name__)
                except Exception as exc:
                    log.error("live_turn_failed", error=type(exc).__name__, exc_info=exc)
                    await _loop.afailed(exc)
                else:
                    await _loop.asucceeded()
                await asyncio.sleep(leader.rest_seconds())
        finally:
            leader.stop()

    # -- Who may watch ----------------------------------------------------------------------------

    def _recheck_later(self, message: str) -> None:
        """A session or a user may have ended. Called in any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._to_recheck.add, message)

    async def _guard(self) -> None:
        disconnected_since = monotonic()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            is_disconnected = bool(settings.REDIS_URL) and not bus.is_listening
            if is_disconnected and monotonic() - disconnected_since >= BUS_DISCONNECTED_TTL:
                disconnected_since = monotonic()
                self._to_recheck.add(ALL)
            if self._to_recheck:
                messages, self._to_recheck = self._to_recheck, set()
                try:
                    is_checked = await self._check(messages)
                except Exception as exc:
                    # Whoever guards must not end: sessions would outlive their end.
                    log.error("live_check_failed", error=type(exc).__name__, exc_info=exc)
                    await _guard_loop.afailed(exc)
                    is_checked = False
                if is_checked:
                    await _guard_loop.asucceeded()
                else:
                    self._to_recheck |= messages
            limit = STALE_POLLS * settings.QUEUE_POLL_SECONDS + FETCH_SECONDS_MAX
            if not self._status and self._snapshot and monotonic() - self._received_at > limit:
                self._status = status_text(STALE, "Nobody asks Robin.", self._snapshot.seq)
                self._broadcast(self._status)

    async def _check(self, messages: set[str]) -> bool:
        """Close what may not watch any more; False when the database could not say."""
        meant = [c for c in self.clients if not c.is_gone and _is_meant(c.member, messages)]
        try:
            found = await authentication.active_sessions({c.member.session_id for c in meant})
        except errors.StoreUnavailable:
            return False
        for client in meant:
            member = found.get(client.member.session_id)
            if member is None:
                client.drop(EXPIRED)
            elif Permission.VIEW_QUEUE not in member.scopes:
                client.drop(FORBIDDEN)
        return True


def _is_meant(member: Member, messages: set[str]) -> bool:
    ids = (ALL, str(member.session_id), str(member.user_id))
    return not messages.isdisjoint(ids)


def merged(diffs: list[dict[str, Any]]) -> dict[str, Any]:
    """Several differences, in their order, as the one that they make together."""
    added: dict[str, Item] = {}
    changed: dict[str, Item] = {}
    removed: dict[str, None] = {}
    for diff in diffs:
        for uid in diff["removed"]:
            changed.pop(uid, None)
            if added.pop(uid, None) is None:
                removed[uid] = None
        for item in diff["changed"]:
            (added if item["uid"] in added else changed)[item["uid"]] = item
        for item in diff["added"]:
            uid = item["uid"]
            if uid in removed:  # it was there, went, and is back
                del removed[uid]
                changed[uid] = item
            else:
                added[uid] = item
    lists = {"added": [*added.values()], "changed": [*changed.values()], "removed": [*removed]}
    return {**diffs[-1], **lists}


class Leader:
    """Keeps the lock, asks Robin when it is time, and publishes what changed."""

    def __init__(self, lock: LeaderLock, fetch: Fetch) -> None:
        self._lock, self._fetch = lock, fetch
        self._fencing_token = 0
        self._snapshot: Snapshot | None = None
        self._next_poll = 0.0
        self._asking: asyncio.Task[Queue] | None = None
        self._status = ""

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    def rest_seconds(self) -> float:
        """Until the next turn: a holder comes back to hold on, others to see if it is free."""
        if not self._fencing_token:
            return RENEW_SECONDS
        wait = self._next_poll - monotonic()
        return min(RENEW_SECONDS, max(0.01, wait if self._asking is None else 0.05))

    async def turn(self) -> None:
        fencing_token = await self._lock.acquire()
        if fencing_token != self._fencing_token:
            self._fencing_token, self._snapshot, self._next_poll = fencing_token, None, 0.0
            self.stop()
            if fencing_token:
                log.info("live_leads", fencing_token=fencing_token)
        if not fencing_token:
            return
        if self._asking is None and monotonic() >= self._next_poll:
            self._next_poll = monotonic() + settings.QUEUE_POLL_SECONDS
            self._asking = asyncio.ensure_future(self._ask())
        if self._asking is not None:
            # Not longer than a turn: the lock has to be held while Robin takes its time.
            await asyncio.wait([self._asking], timeout=RENEW_SECONDS)
            if self._asking.done():
                asking, self._asking = self._asking, None
                await self._broadcast(asking)

    async def _ask(self) -> Queue:
        live_polls.inc()
        async with asyncio.timeout(FETCH_SECONDS_MAX):
            return await self._fetch()

    async def _broadcast(self, asked: asyncio.Task[Queue]) -> None:
        if self._snapshot is None:
            found = await self._lock.found()
            self._snapshot = Snapshot.of(found.snapshot)
        seq = self._snapshot.seq if self._snapshot is not None else 0
        if (error := asked.exception()) is not None:
            status, message = _trouble(error)
            if self._status != status:
                log.warning("live_poll_failed", error=type(error).__name__)
            self._status = status
            await self._publish("status", seq, status_text(status, message, seq))
            return
        if self._status:
            self._status = ""
            await self._publish("status", seq, status_text("up", "Robin answers again.", seq))
        queue = asked.result()
        at = queue.as_of or _now()
        if self._snapshot is None:
            # Above every number that was ever given, also to those who come back after a day.
            items = {item["uid"]: item for item in queue.items[:ITEMS_MAX]}
            snapshot = Snapshot(int(clock.time() * 1000), at, queue.totals, items)
            if await self._lock.store(self._fencing_token, snapshot.json(), b""):
                self._snapshot = snapshot
                await self._publish("snapshot", snapshot.seq, "{}")
            return
        diff = self._snapshot.difference(queue, at)
        if diff is None:
            self._snapshot.at = at
            p = self._snapshot
            base = {"type": "heartbeat", "seq": p.seq, "at": at, "totals": p.totals}
            await self._publish("heartbeat", p.seq, orjson.dumps(base).decode())
            return
        self._snapshot.apply(diff)
        text = orjson.dumps(diff)
        if await self._lock.store(self._fencing_token, self._snapshot.json(), text):
            await self._publish("diff", diff["seq"], text.decode())
        else:
            self._snapshot = None  # somebody else leads: begin from what they stored

    async def _publish(self, kind: str, seq: int, text: str) -> None:
        message = {
            "type": "queue.word",
            "v": VERSION,
            "fence": self._fencing_token,
            "kind": kind,
            "seq": seq,
            "text": text,
        }
        await cast(Any, get_channel_layer()).group_send(GROUP, message)


def _trouble(error: BaseException) -> tuple[str, str]:
    """`busy` is a queue that is long and not known yet: Robin works."""
    if isinstance(error, scan.Reading):
        return "busy", "Robin's queue is long, and is being read."
    return "down", "Robin does not answer."


def status_text(status: str, message: str, seq: int) -> str:
    body = {"type": "status", "seq": seq, "at": _now(), "status": status, "message": message}
    return orjson.dumps(body).decode()


def _now() -> str:
    return utc_text(clock.now())


_hub: Hub | None = None


def _on_job(note: str) -> None:
    """How far an action on many is. Called in any thread."""
    if _hub is not None:
        _hub.tell_of_job(note)


CHANNEL = "live"  # nothing is said there: a gap of the bus is all that matters


def _on_gap() -> None:
    if _hub is not None:
        _hub.listen_again()


bus.on(CHANNEL, lambda note: None, _on_gap)
bus.on(JOBS_CHANNEL, _on_job, lambda: None)


async def open_hub(fetch: Fetch) -> Hub:
    """Make the hub of this process; called once, in the lifespan, inside the event loop."""
    global _hub
    _hub = Hub(fetch)
    await _hub.open()
    return _hub


async def close_hub() -> None:
    global _hub
    if _hub is not None:
        await _hub.shut()
        _hub = None


def is_open() -> bool:
    return _hub is not None


def hub() -> Hub:
    if _hub is None:
        raise RuntimeError("the application was not started: its lifespan opens the hub")
    return _hub
