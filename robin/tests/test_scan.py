"""The scan of the queue: what it takes of Robin's time, and what is said of what is not known."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from itertools import count
from time import monotonic
from uuid import UUID

import pytest
from django.conf import settings as django_settings
from redis.asyncio import Redis

from accounts.tests.shapes import refusal
from gateway_project.core import clock, errors
from gateway_project.core.upstream.client import UpstreamTimeout
from robin.config import settings_page
from robin.models import SeenItem
from robin.queue import scan, seen, services, source
from robin.queue.alerts import tls
from robin.queue.scan import Scanner
from robin.queue.scan_store import RedisScanStore
from robin.queue.translate import QueuePage
from robin.queue.turns import Turn
from robin.standin.queue import Envelope
from robin.tests.test_live import until


def item(number, **fields):
    uid = str(UUID(int=number))
    return {
        "uid": uid, "protocol": "ESMTP", "mailbox": "", "retryCount": 0, "maxRetryCount": 30,
        "lastRetryTime": 0, "recipients": [], "recipientsTotal": 0, "recipientsCut": False,
        "envelopes": 1, "files": [], **fields,
    }  # fmt: skip


class FakeSource:
    """A Robin whose lists take `seconds`; notes how long it was kept, and by how many at once."""

    def __init__(self, count=10, *, seconds=0.0, claimed=(), dead=()):
        self.items = [item(n) for n in range(1, count + 1)]
        self.claimed, self.dead = list(claimed), list(dead)
        self.seconds, self.busy, self.at_once, self.most = seconds, 0.0, 0, 0
        self.asked = []
        self.free = True
        self.error = None

    async def read_list(self, kind, number):
        self.asked.append(f"{kind}:{number}")
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        began = monotonic()
        try:
            await asyncio.sleep(self.seconds)
            if self.error is not None:
                raise self.error
        finally:
            self.at_once -= 1
            self.busy += monotonic() - began
        rows = {"ALL": self.items, "CLAIMED": self.claimed, "DEAD": self.dead}[kind]
        return QueuePage(len(rows), rows[number * 1000 : (number + 1) * 1000])

    async def health(self):
        ready = len(self.items) - len(self.claimed) - len(self.dead)
        return {"queue": {"ready": ready, "claimed": len(self.claimed), "dead": len(self.dead) + 3}}

    async def is_free(self):
        return self.free


@pytest.fixture
def play(gateway, settings, monkeypatch):
    """`play(scenario, source, count)`: `scenario(*scanners)` in the gateway's loop."""
    settings.QUEUE_POLL_SECONDS = 0.02
    settings.ROBIN_TIMEOUT_SECONDS = 3.0
    monkeypatch.setattr(scan, "robin", lambda: None)
    monkeypatch.setattr(scan, "WATCH_POLLS", 1000)  # whoever asked once goes on watching
    scan.forget()

    def play(scenario, source, count=1):
        async def main():
            scanners = [Scanner(source=source) for _ in range(count)]
            try:
                return await scenario(*scanners)
            finally:
                for one in scanners:
                    await one.close()

        return gateway.run(main())

    yield play
    scan.forget()


class TestShare:
    @pytest.mark.parametrize("watchers", [1, 30])
    @pytest.mark.parametrize("scanners", [1, 2])
    def test_robin_is_kept_a_tenth_of_its_time_however_many_watch(
        self, play, settings, watchers, scanners
    ):
        settings.ROBIN_QUEUE_SHARE_MAX = 0.1
        source = FakeSource(3000, seconds=0.05, claimed=[item(1)], dead=[item(2)])

        async def watch(scanner, end):
            while monotonic() < end:
                await scanner.view(scan.WHOLE)
                await asyncio.sleep(0.01)

        async def scenario(*found):
            began = monotonic()
            end = began + 2.5
            await asyncio.gather(*(watch(s, end) for s in found for _ in range(watchers)))
            return monotonic() - began

        seconds = play(scenario, source, scanners if django_settings.REDIS_URL else 1)

        assert source.most == 1
        assert len(source.asked) >= 3
        # What was begun last has its rest before it.
        assert source.busy <= 0.1 * seconds + 0.15

    @pytest.mark.parametrize("watchers", [0, 3])
    def test_nor_however_many_act(self, play, settings, monkeypatch, watchers):
        settings.ROBIN_QUEUE_SHARE_MAX = 0.1
        monkeypatch.setattr(scan, "CLAIMED_SECONDS", 0.0)  # each wants a list of its own
        source = FakeSource(10, seconds=0.02, claimed=[item(1)])

        async def repeat(ask, end):
            while monotonic() < end:
                await ask()
                await asyncio.sleep(0.01)

        async def scenario(scanner):
            began = monotonic()
            asking = [scanner.claimed] * 3 + [partial(scanner.view, "ALL:0")] * watchers
            await asyncio.gather(*(repeat(ask, began + 1.5) for ask in asking))
            return monotonic() - began

        seconds = play(scenario, source)

        assert source.asked.count("CLAIMED:0") >= 2
        # Besides, what has its rest before it: a round of watchers, and a list for who acts.
        assert source.busy <= 0.1 * seconds + 0.1

    def test_nobody_watches_nobody_asks(self, play, monkeypatch):
        monkeypatch.setattr(scan, "WANT_SECONDS", 0.1)
        source = FakeSource()

        async def scenario(scanner):
            await scanner.view("ALL:0")
            await until(lambda: scanner._task.done())
            asked = len(source.asked)
            await asyncio.sleep(0.2)
            assert len(source.asked) == asked

        play(scenario, source)

    def test_who_looks_once_does_not_watch(self, play, settings, monkeypatch):
        settings.QUEUE_POLL_SECONDS = 5.0
        monkeypatch.setattr(scan, "WATCH_POLLS", 2)

        async def scenario(scanner):
            def due(asked_ago, seen_ago, total):
                scanner._wishes = {scan.WHOLE: scan._Wish(monotonic() - asked_ago, 5.0)}
                return scanner._overdue({"ALL:0": {"at": clock.time() - seen_ago, "total": total}})

            assert due(8, 30, 10)[0] == "ALL:0"
            assert due(12, 30, 10) == (None, 1.0)
            assert due(12, 70, 10)[0] == "ALL:0"
            assert due(12, 30, 1500)[0] == "ALL:1"  # what nobody has read yet is read

        play(scenario, FakeSource())

    def test_a_list_that_was_given_up_is_waited_for(self, play, settings):
        settings.ROBIN_QUEUE_SHARE_MAX = 1.0
        source = FakeSource()
        source.error, source.free = errors.UpstreamTimedOut(), False
        source.error.__cause__ = UpstreamTimeout("", 1.0)

        async def scenario(scanner):
            with pytest.raises(errors.UpstreamTimedOut):
                await scanner.view("ALL:0")
            source.error = None
            await asyncio.sleep(1.2)  # it would have been tried again by now
            assert source.asked == ["ALL:0"]
            source.free = True
            await until(lambda: len(source.asked) > 1)

        play(scenario, source)

    @pytest.mark.parametrize(
        ("seen_busy", "took", "counted"),
        [(None, 0.0, 60.0), (None, 2.0, 4.0), (298.0, 2.0, 301.0)],
        ids=["nothing known", "a list takes two seconds", "seen busy for long"],
    )
    def test_who_stood_still_for_hours_lets_nobody_wait_for_days(
        self, play, seen_busy, took, counted
    ):
        """Halted in the middle of a list, or started anew after a night."""
        source, counts = FakeSource(), []

        async def note(seconds):
            counts.append(seconds)

        async def scenario(scanner):
            scanner.turns.settle = note
            await scanner.store.put("ALL:0", {"at": 0.0, "total": 1, "count": 1, "took": took})
            if seen_busy is not None:
                source.free = False
                await scanner.settle(Turn("abandoned", seen_busy))
                source.free = True
            await scanner.settle(Turn("abandoned", 5 * 3600.0))

        play(scenario, source)
        assert counts == [counted]


class TestWhatIsKnown:
    def test_a_long_list_keeps_nobody_waiting(self, play, settings):
        settings.ROBIN_QUEUE_SHARE_MAX = 1.0
        source = FakeSource(5)

        async def scenario(scanner):
            first = await scanner.view("ALL:0")
            source.seconds = 1.0
            await scanner.store.put("took", {"at": 0.0, "took": 1.0})
            await until(lambda: source.at_once == 1)
            began = monotonic()
            again = await scanner.view("ALL:0")
            assert monotonic() - began < 0.5
            assert again.as_of() >= first.as_of()
            assert await scanner.seconds_until_free() is not None

        play(scenario, source)

    def test_the_first_reading_of_a_long_queue_says_so(self, play, settings):
        settings.ROBIN_TIMEOUT_SECONDS = 0.1
        source = FakeSource(5, seconds=2.0)

        async def scenario(scanner):
            with pytest.raises(scan.Reading) as caught:
                await scanner.view("ALL:0")
            assert int(caught.value.headers["Retry-After"]) >= 1

        play(scenario, source)

    def test_by_and_by_all_of_it(self, play, settings):
        settings.ROBIN_QUEUE_SHARE_MAX = 1.0
        source = FakeSource(2500, dead=[item(7)])

        async def scenario(scanner):
            view = await scanner.view(scan.WHOLE)
            while not view.is_complete:
                view = await scanner.view(scan.WHOLE)
            assert [i["uid"] for i in view.items] == [i["uid"] for i in source.items]
            assert view.totals() == {"total": 2500, "ready": 2499, "claimed": 0, "dead": 1}
            assert view.state_of(item(7)["uid"]) == "DEAD"
            assert view.retries() == {"0": 2499}

        play(scenario, source)

    def test_when_it_was_first_seen_stays_and_goes_with_the_item(self, play, settings):
        settings.ROBIN_QUEUE_SHARE_MAX = 1.0
        source = FakeSource(3)

        async def times(scanner):
            return {i["uid"]: i["createTime"] for i in (await scanner.view("ALL:0")).items}

        async def scenario(scanner):
            first = await times(scanner)
            asked = len(source.asked)
            await until(lambda: len(source.asked) > asked + 4)
            assert await times(scanner) == first
            scan.forget()  # another process, after everything else was lost
            assert await times(scanner) == first
            gone = source.items.pop(0)["uid"]
            while not await missed().aexists():  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.02)
            assert (await missed().aget()).uid == UUID(gone)
            await missed().aupdate(missed_at=long_ago)
            while await missed().aexists():  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.02)
            return gone

        def missed():
            return SeenItem.objects.filter(missed_at__isnull=False)

        long_ago = clock.now() - timedelta(seconds=2 * seen.MISSED_SECONDS_MIN)
        gone = play(scenario, source)
        assert not SeenItem.objects.filter(uid=gone).exists()
        assert SeenItem.objects.count() == 2

    @pytest.mark.parametrize("moves", ["delivered", "tried again later", "put in front"])
    def test_what_moves_between_two_lists_is_neither_new_nor_lost(self, play, moves):
        """Items pass from a part that is read next into one that was read before."""
        source = FakeSource(2500)
        fresh = count(10_000)

        def move():
            if moves == "put in front":
                source.items[:0] = [item(next(fresh)) for _ in range(270)]
                return
            gone, source.items = source.items[:170], source.items[170:]
            if moves == "tried again later":
                source.items += gone

        async def read(scanner, first_seen):
            """Each part, a while after the one before."""
            for name in scan.parts_of("ALL", await scanner.store.facts()):
                await scanner._keep(name, await scanner._listed(name, {}), 0.0)
                facts = await scanner.store.facts()
                view = await scanner._view(facts, scan.parts_of("ALL", facts))
                known = {i["uid"]: i["firstSeenTime"] for i in view.items}
                if view.is_complete:
                    assert known.keys() >= {i["uid"] for i in source.items}
                for uid, at in known.items():
                    assert first_seen.setdefault(uid, at) == at
                yield view

        async def scenario(scanner):
            await scanner._keep("ALL:0", await scanner._listed("ALL:0", {}), 0.0)
            first_seen = {}
            views = [view async for view in read(scanner, first_seen)]
            assert views[-1].is_complete
            for _ in range(3):
                async for view in read(scanner, first_seen):
                    views.append(view)
                    move()
            assert not views[-1].is_complete
            for _ in "12":
                views += [view async for view in read(scanner, first_seen)]
            assert views[-1].is_complete

        play(scenario, source)
        assert set(SeenItem.objects.values_list("uid", flat=True)) >= {
            UUID(i["uid"]) for i in source.items
        }

    def test_what_we_did_is_seen_at_once_whatever_is_being_read(self, play, settings):
        settings.QUEUE_POLL_SECONDS = 60.0  # one that begins afterwards reads what is there then
        source = FakeSource(4, dead=[item(4)])

        async def scenario(scanner):
            await scanner.view("ALL:0")
            await scanner.acted("delete", [item(1)["uid"]], done=1)
            await scanner.acted("bounce", [item(2)["uid"]], done=1)
            await scanner.acted("retry", [item(4)["uid"]], done=1)
            facts = await scanner.store.facts()
            view = await scanner._view(facts, ["ALL:0"])
            states = {i["uid"]: (i["state"], i["retryCount"]) for i in view.items}
            assert states == {
                item(2)["uid"]: ("DEAD", 0),
                item(3)["uid"]: ("READY", 0),
                item(4)["uid"]: ("READY", 1),
            }

        play(scenario, source)

    def test_what_many_look_at_is_fetched_when_it_changed(self, play, settings, monkeypatch):
        settings.QUEUE_POLL_SECONDS = 60.0
        source, fetched = FakeSource(4), []

        async def scenario(scanner, other):
            await scanner.view("ALL:0")
            parts = scanner.store.parts

            async def counted(names):
                fetched.extend(names)
                return await parts(names)

            monkeypatch.setattr(scanner.store, "parts", counted)
            await scanner.view("ALL:0")
            fetched.clear()
            assert len([*(await scanner.view("ALL:0")).items]) == 4
            assert fetched == []

            await other.acted("delete", [item(1)["uid"]], done=1, want_again=False)
            assert len([*(await scanner.view("ALL:0")).items]) == 3
            assert "ALL:0" in fetched

        play(scenario, source, count=2)

    def test_what_was_looked_at_is_there_while_the_store_is_away(self, play, settings, monkeypatch):
        settings.QUEUE_POLL_SECONDS = 60.0

        async def scenario(scanner):
            await scanner.view("ALL:0")

            async def away(*_):
                raise OSError

            for name in ("facts", "parts"):
                monkeypatch.setattr(scanner.store, name, away)
            assert len([*(await scanner.view("ALL:0")).items]) == 4

        play(scenario, FakeSource(4))

    @pytest.mark.parametrize("has", ["all", "half", "none"])
    @pytest.mark.parametrize("action", ["retry", "delete", "bounce"])
    def test_totals_after_an_act_are_those_of_the_next_list(self, play, settings, action, has):
        settings.QUEUE_POLL_SECONDS = 60.0
        source = FakeSource(8)
        source.dead = source.items[:4]
        asked = {
            "all": [*range(1, 7)],
            "half": [1, 2, 5, 91, 92, 93],
            "none": [*range(91, 97)],
        }[has]
        uids = [item(number)["uid"] for number in asked]

        def act():
            found = [one for one in source.items if one["uid"] in uids]
            source.dead = [one for one in source.dead if one not in found]
            if action == "bounce":
                source.dead += found
            elif action == "delete":
                source.items = [one for one in source.items if one not in found]
            return len(found)

        async def totals(scanner):
            return scan.View(await scanner.store.facts(), {}).totals()

        async def read(scanner):
            for name in scan.FIRST:
                await scanner._keep(name, await scanner._listed(name, {}), 0.0)

        async def scenario(scanner):
            await read(scanner)
            await scanner.acted(action, uids, done=act(), want_again=False)
            shown = await totals(scanner)
            await read(scanner)
            assert shown == await totals(scanner)

        play(scenario, source)


def test_a_part_that_is_not_known_is_not_made_up(member, robin, settings):
    ada = member("ROLE_ADMIN", by_hand=True)
    for n in range(1100):
        robin.seed.queue.enqueue("ESMTP", [Envelope("", [f"n{n}@long.example"])])
    ada.get("/api/v1/queue/json")
    settings.ROBIN_QUEUE_SHARE_MAX = 0.000001  # from now on it rests
    settings.QUEUE_POLL_SECONDS = 600
    known = ada.get("/api/v1/queue/json").json()
    far = ada.get("/api/v1/queue/json?page=23")
    if known["complete"] or far.status_code == 200:
        assert far.json()["items"]
    else:
        assert refusal(far) == (503, "upstream_unavailable")
        assert int(far.headers["retry-after"]) >= 1


def test_what_the_list_cannot_show_is_reported(member, robin):
    ada = member("ROLE_ADMIN", by_hand=True)
    rcpts = [f"n{n}@cut.example" for n in range(8)]
    robin.seed.queue.enqueue("ESMTP", [Envelope("", rcpts)])

    found = ada.get("/api/v1/queue?search=cut.example").json()["items"][0]

    assert (len(found["recipients"]), found["recipientsTotal"]) == (5, 8)
    assert found["recipientsCut"] is True
    assert found["createTime"] == found["firstSeenTime"]


def test_a_quiet_queue_makes_no_differences(gateway, robin, member):
    """Robin dates each item anew in each list; nobody is told of that."""

    async def look():
        first = await services.fetch_queue()
        scan.scanner().want(*scan.FIRST, age_seconds=0.0)
        asked = len(robin.client.asked)
        await until(lambda: len(robin.client.asked) > asked + 3)
        return first, await services.fetch_queue()

    one, other = gateway.run(look())
    assert one.items == other.items
    assert one.totals == other.totals


@pytest.mark.parametrize("kind", source.LISTS)
def test_an_item_is_the_same_whoever_read_it(gateway, robin, kind):
    """What a worker reads is shown by web processes, too."""
    robin.seed.config["Relay Configuration"]["maxRetryCount"] = 2

    async def by_web():
        return await source.RobinSource().read_list(kind, 0)

    async def by_worker():
        async with source.PlainSource(tls()) as plain:
            return await plain.read_list(kind, 0)

    found = []
    for read in (by_web, by_worker):
        settings_page.forget()
        found.append(gateway.run(read()))

    assert found[0].items
    assert found[0] == found[1]
    assert 2 in {item["maxRetryCount"] for item in found[0].items}


@pytest.mark.needs_redis
def test_pages_at_once_ask_redis_once(gateway, monkeypatch):
    """And see what this process has written meanwhile."""
    asked = []
    real = Redis.hgetall

    def hgetall(redis, name):
        asked.append(name)
        return real(redis, name)

    async def run():
        store = RedisScanStore(django_settings.REDIS_URL)
        try:
            await store.put("ALL:0", {"at": 1})
            together = await asyncio.gather(*(store.facts() for _ in range(20)))
            assert len(asked) == 1
            assert [facts["ALL:0"]["at"] for facts in together] == [1.0] * 20

            before = asyncio.ensure_future(store.facts())
            await store.put("ALL:0", {"at": 2})
            assert (await store.facts())["ALL:0"]["at"] == 2.0
            await before
        finally:
            await store.drop(["ALL:0"])
            await store.close()

    monkeypatch.setattr(Redis, "hgetall", hgetall)
    gateway.run(run())


def test_a_page_is_made_once_until_something_is_read_or_done(gateway, robin, member):
    async def look():
        scanner = scan.scanner()
        first = await scanner.view("ALL:0")
        while not first.knows_states:
            await asyncio.sleep(0.01)
            first = await scanner.view("ALL:0")
        again = await scanner.view("ALL:0")
        page = first.items
        assert again is first
        assert again.items is page

        [item, *_] = page
        await services.act("delete", [item["uid"]])
        after = await scanner.view("ALL:0")
        assert after is not first
        assert item["uid"] not in [one["uid"] for one in after.items]

    gateway.run(look())
