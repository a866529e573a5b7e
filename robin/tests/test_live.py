"""What watchers of the queue are told: the hub, its leader, and two processes with one lock."""

from __future__ import annotations

import asyncio
import json
from time import time
from uuid import uuid4

import pytest
from django.conf import settings as django_settings

from robin.access.authentication import Member
from robin.queue import leader, live
from robin.queue.leader import LocalLeaderLock, RedisLeaderLock
from robin.queue.live import Client, Hub, Queue, Snapshot, merged


def item(number: int, **fields):
    return {"uid": f"uid-{number}", "protocol": "ESMTP", "retryCount": 0, **fields}


def queue_of(*items) -> Queue:
    return Queue(list(items), {"total": len(items), "ready": len(items), "claimed": 0, "dead": 0})


def after(messages):
    """The items that a client has who heard `messages`, by uid."""
    items = {}
    for message in messages:
        match message["type"]:
            case "snapshot":
                items = {i["uid"]: i for i in message["items"]}
            case "diff":
                for uid in message["removed"]:
                    del items[uid]
                for one in message["changed"]:
                    assert one["uid"] in items
                    items[one["uid"]] = one
                for one in message["added"]:
                    assert one["uid"] not in items
                    items[one["uid"]] = one
    return items


class FakeRobin:
    """`robin.has(item(1), …)`; counts how often it is asked."""

    def __init__(self):
        self.queue = queue_of(item(1), item(2))
        self.asked = 0
        self.trouble = None
        self.hangs = False

    def has(self, *items):
        self.queue = queue_of(*items)

    async def fetch(self) -> Queue:
        self.asked += 1
        if self.hangs:
            await asyncio.sleep(3600)
        if self.trouble is not None:
            raise self.trouble
        return self.queue


class Watcher:
    """A client whose socket is a list; `is_stuck`: it reads nothing more."""

    def __init__(self, hub, *, since=None, seconds=60.0):
        self.received, self.code, self.is_stuck = [], None, False
        member = Member(
            *(uuid4(), uuid4(), "ada", "ada@robin.example", "ROLE_ADMIN", False, False),
            frozenset({"VIEW_QUEUE"}),
            (),
        )
        self.client = Client(member, time() + seconds, self._send, self._close, since)
        hub.join(self.client)

    async def _send(self, text):
        while self.is_stuck:  # noqa: ASYNC110 - as long as the test says
            await asyncio.sleep(0.01)
        self.received.append(json.loads(text))

    async def _close(self, code):
        self.code = code

    def kinds(self):
        return [message["type"] for message in self.received]


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the hub's progress cannot be awaited
            await asyncio.sleep(0.005)


@pytest.fixture
def robin():
    return FakeRobin()


@pytest.fixture
def play(gateway, robin, settings, monkeypatch):
    """`play(scenario)` runs `scenario(hub, other_hub)` in the gateway's loop, then shuts both."""
    settings.QUEUE_POLL_SECONDS = 0.03
    monkeypatch.setattr(live, "RENEW_SECONDS", 0.05)

    async def allowed(self, messages):
        return True

    monkeypatch.setattr(Hub, "_check", allowed)  # invented sessions; test_ws_queue.py has real ones

    def make_locks():
        if django_settings.REDIS_URL:
            url = django_settings.REDIS_URL
            return RedisLeaderLock(url, term_seconds=0.5), RedisLeaderLock(url, term_seconds=0.5)
        one = LocalLeaderLock()
        return one, one

    def play(scenario):
        async def main():
            hubs = [Hub(robin.fetch, lock=s) for s in make_locks()]
            for hub in hubs:
                await hub.open()
            try:
                await scenario(*hubs)
            finally:
                for hub in hubs:
                    await hub.shut()

        gateway.run(main())

    return play


class TestWhatIsSent:
    def test_a_snapshot_first_then_differences_and_heartbeats(self, play, robin):
        async def scenario(hub, _):
            ada = Watcher(hub)
            await until(lambda: "heartbeat" in ada.kinds())
            robin.has(item(2, retryCount=1), item(3))
            await until(lambda: "diff" in ada.kinds())

            first, diff = ada.received[0], ada.received[ada.kinds().index("diff")]
            assert first["type"] == "snapshot"
            assert [i["uid"] for i in first["items"]] == ["uid-1", "uid-2"]
            assert first["totals"] == {"total": 2, "ready": 2, "claimed": 0, "dead": 0}
            assert first["at"].endswith("Z")
            assert diff["seq"] == first["seq"] + 1
            assert diff["added"] == [item(3)]
            assert diff["changed"] == [item(2, retryCount=1)]
            assert diff["removed"] == ["uid-1"]
            assert set(diff) == {"type", "seq", "at", "totals", "added", "changed", "removed"}
            assert {m["seq"] for m in ada.received if m["type"] == "heartbeat"} <= {
                first["seq"],
                diff["seq"],
            }

        play(scenario)

    @pytest.mark.needs_redis
    @pytest.mark.hostile
    @pytest.mark.parametrize("stored", [b"{", b"[]", b"5", b"{}", b'{"seq": "x", "items": [1]}'])
    def test_nonsense_in_redis_stops_nobody(self, play, stored):
        async def scenario(hub, _):
            await hub._lock._redis.set(leader.PREFIX + "picture", stored)
            await hub._lock._redis.rpush(leader.PREFIX + "words", stored)
            ada = Watcher(hub)
            await until(lambda: ada.received)
            assert ada.kinds()[0] == "snapshot"

        play(scenario)

    def test_a_snapshot_holds_the_first_thousand(self, play, robin):
        robin.has(*(item(n) for n in range(1200)))

        async def scenario(hub, _):
            ada = Watcher(hub)
            await until(lambda: ada.received)
            assert len(ada.received[0]["items"]) == live.ITEMS_MAX
            assert ada.received[0]["totals"]["total"] == 1200

        play(scenario)

    def test_who_comes_later_sees_what_the_others_see(self, play, robin):
        async def scenario(hub, _):
            ada = Watcher(hub)
            await until(lambda: ada.received)
            for n in range(3, 8):
                robin.has(item(n), item(n + 1))
                count = ada.kinds().count("diff")
                await until(lambda count=count: ada.kinds().count("diff") > count)
            bob = Watcher(hub)
            await until(lambda: bob.received)

            assert (
                after(ada.received) == after(bob.received) == {"uid-7": item(7), "uid-8": item(8)}
            )

        play(scenario)

    def test_robin_away_is_said_once_and_the_last_picture_stays(self, play, robin):
        async def scenario(hub, _):
            ada = Watcher(hub)
            await until(lambda: ada.received)
            robin.trouble = OSError("refused")
            asked = robin.asked
            await until(lambda: "status" in ada.kinds())
            bob = Watcher(hub)
            await until(lambda: "status" in bob.kinds())
            robin.trouble = None
            await until(lambda: ada.received[-1]["type"] == "heartbeat" and robin.asked > asked + 3)

            statuses = [m["status"] for m in ada.received if m["type"] == "status"]
            assert statuses[-1] == "up"
            assert set(statuses[:-1]) == {"down"}
            assert bob.kinds()[:2] == ["snapshot", "status"]
            assert "refused" not in json.dumps(ada.received)  # no inside of ours

        play(scenario)


class TestWhoIsAsked:
    def test_nobody_is_asked_while_nobody_watches(self, play, robin):
        async def scenario(hub, _):
            await asyncio.sleep(0.1)
            assert robin.asked == 0
            ada = Watcher(hub)
            await until(lambda: ada.received)
            hub.leave(ada.client)
            assert hub._resting is not None
            await hub._resting  # redis-py may swallow a cancellation: it is told twice then
            asked = robin.asked
            await asyncio.sleep(0.15)
            assert robin.asked == asked

        play(scenario)

    @pytest.mark.needs_redis
    def test_one_of_two_processes_asks_for_both(self, play, robin):
        async def scenario(one, other):
            ada, bob = Watcher(one), Watcher(other)
            await until(lambda: ada.received and bob.received)
            robin.has(item(5))
            await until(lambda: "diff" in ada.kinds() and "diff" in bob.kinds())

            assert after(ada.received) == after(bob.received) == {"uid-5": item(5)}
            diffs = [[m for m in w.received if m["type"] == "diff"] for w in (ada, bob)]
            assert diffs[0] == diffs[1]

        play(scenario)

    @pytest.mark.needs_redis
    def test_a_process_that_leaves_gives_the_lead_to_the_other(self, play, robin):
        async def scenario(one, other):
            ada = Watcher(one)
            await until(lambda: ada.received)
            bob = Watcher(other)
            await until(lambda: bob.received)
            one.leave(ada.client)
            robin.has(item(9))
            await until(lambda: "diff" in bob.kinds())

            assert after(bob.received) == {"uid-9": item(9)}

        play(scenario)

    @pytest.mark.needs_redis
    def test_one_that_fell_silent_is_replaced_and_its_late_words_are_not_believed(
        self, play, robin
    ):
        async def scenario(one, other):
            ada = Watcher(one)
            await until(lambda: ada.received)
            bob = Watcher(other)
            await until(lambda: bob.received)
            # On a busy machine the first may have lost the lock to the second already.
            holder, fencing_token = await one._lock._redis.mget(one._lock._keys[:2])
            if holder == other._lock._me.encode():
                one, other, bob = other, one, ada
            old_token, lead = int(fencing_token), one._tasks[1]
            while not lead.done():  # redis-py swallows a cancellation that meets its own timeout
                lead.cancel()  # as `kill -9` would: nothing is resigned
                await asyncio.wait({lead}, timeout=0.1)
            robin.has(item(9))
            await until(lambda: after(bob.received) == {"uid-9": item(9)})
            assert other._fencing_token > old_token

            assert not await one._lock.store(old_token, b"{}", b"")
            count = len(bob.received)
            late = {"fence": old_token, "kind": "status", "seq": 0, "text": "{}"}
            await other._on_message(late)
            assert len(bob.received) <= count + 1  # nothing but, perhaps, a heartbeat
            assert "status" not in bob.kinds()

        play(scenario)

    def test_a_robin_that_hangs_is_given_up(self, play, robin, monkeypatch):
        monkeypatch.setattr(live, "FETCH_SECONDS_MAX", 0.1)
        robin.hangs = True

        async def scenario(hub, _):
            ada = Watcher(hub)
            await until(lambda: robin.asked > 1)
            robin.hangs = False
            await until(lambda: "snapshot" in ada.kinds())

        play(scenario)


class TestResuming:
    def test_who_was_away_gets_what_was_missed_in_one(self, play, robin):
        async def scenario(hub, _):
            ada = Watcher(hub)
            await until(lambda: ada.received)
            before, seq = after(ada.received), ada.received[-1]["seq"]
            for n in range(3, 20):
                robin.has(item(2, retryCount=n), item(n))
                await until(lambda n=n: f"uid-{n}" in after(ada.received))
            bob = Watcher(hub, since=seq)
            await until(lambda: bob.received)

            diff = bob.received[0]
            assert diff["type"] == "diff"
            start = {"type": "snapshot", "items": list(before.values())}
            assert after([start, diff]) == after(ada.received)

        play(scenario)

    def test_also_when_nobody_else_stayed(self, play, robin):
        async def scenario(hub, _):
            ada = Watcher(hub)
            await until(lambda: ada.received)
            seq = ada.received[-1]["seq"]
            hub.leave(ada.client)
            await until(lambda: not hub._tasks)
            bob = Watcher(hub, since=seq)
            await until(lambda: bob.received)

            assert bob.received[0]["type"] == "heartbeat"

        play(scenario)

    @pytest.mark.needs_redis
    def test_also_at_another_process(self, play, robin):
        async def scenario(one, other):
            ada = Watcher(one)
            await until(lambda: ada.received)
            seq = ada.received[-1]["seq"]
            robin.has(item(7))
            await until(lambda: "diff" in ada.kinds())
            bob = Watcher(other, since=seq)
            await until(lambda: bob.received)

            assert bob.received[0]["type"] == "diff"
            assert bob.received[0]["removed"] == ["uid-1", "uid-2"]

        play(scenario)

    @pytest.mark.parametrize("since", [0, 1, 9_999_999_999_999_999])
    def test_a_number_that_is_not_ours_gets_a_snapshot(self, play, robin, since):
        async def scenario(hub, _):
            ada = Watcher(hub, since=since)
            await until(lambda: ada.received)
            assert ada.received[0]["type"] == "snapshot"

        play(scenario)

    @pytest.mark.needs_redis
    def test_a_word_that_was_lost_is_made_good_by_a_snapshot(self, play, robin):
        async def scenario(one, other):
            on_message, lost = other._on_message, []

            async def lossy(message):
                if message["kind"] == "diff" and not lost:
                    lost.append(message)
                    return
                await on_message(message)

            other._on_message = lossy
            ada, bob = Watcher(one), Watcher(other)
            await until(lambda: ada.received and bob.received)
            robin.has(item(8))
            await until(lambda: lost and bob.kinds()[1:].count("snapshot"))

            assert after(bob.received) == {"uid-8": item(8)}

        play(scenario)

    @pytest.mark.needs_redis
    def test_it_goes_on_after_redis_lost_everything(self, play, robin):
        async def scenario(hub, _):
            ada = Watcher(hub)
            await until(lambda: "heartbeat" in ada.kinds())
            for name in ("holder", "fence", "picture", "words"):
                await hub._lock._redis.delete(leader.PREFIX + name)
            robin.has(item(6))
            await until(lambda: after(ada.received) == {"uid-6": item(6)})

        play(scenario)


class TestSlowAndOld:
    def test_a_slow_reader_is_dropped_and_the_others_are_not(self, play, robin):
        async def scenario(hub, _):
            ada, bob = Watcher(hub), Watcher(hub)
            await until(lambda: ada.received and bob.received)
            ada.is_stuck = True
            await until(lambda: ada.code is not None)

            assert ada.code == 4408
            assert ada.client.unsent.qsize() <= live.UNSENT_MAX
            count = len(bob.received)
            await until(lambda: len(bob.received) > count)
            assert bob.code is None

        play(scenario)

    def test_the_socket_ends_with_its_token(self, play, robin):
        async def scenario(hub, _):
            ada = Watcher(hub, seconds=0.2)
            await until(lambda: ada.code is not None)
            assert ada.code == 4401

        play(scenario)

    def test_leaving_leaves_nothing_behind(self, play, robin):
        async def scenario(hub, _):
            ada = Watcher(hub)
            await until(lambda: ada.received)
            hub.leave(ada.client)
            hub.leave(ada.client)
            await until(lambda: not hub._tasks)
            await asyncio.sleep(0)
            assert all(task.cancelled() for task in ada.client.tasks)

        play(scenario)


def test_differences_merge_into_the_one_that_they_make_together():
    def diff(seq, queue):
        found = pictures[-1].difference(queue, "now")
        assert found["seq"] == seq
        copy = Snapshot(pictures[-1].seq, "now", {}, dict(pictures[-1].items))
        copy.apply(found)
        pictures.append(copy)
        return found

    pictures = [Snapshot(1, "now", {}, {i["uid"]: i for i in (item(1), item(2), item(3))})]
    diffs = [
        diff(2, queue_of(item(2), item(3), item(4))),
        diff(3, queue_of(item(2, retryCount=1), item(4, retryCount=1), item(5))),
        diff(4, queue_of(item(1, retryCount=9), item(2, retryCount=2), item(5, retryCount=1))),
        diff(5, queue_of(item(1, retryCount=9), item(3, retryCount=3), item(6))),
    ]

    one = merged(diffs)

    start = {"type": "snapshot", "items": list(pictures[0].items.values())}
    assert after([start, one]) == pictures[-1].items == after([start, *diffs])
    assert one["seq"] == 5
