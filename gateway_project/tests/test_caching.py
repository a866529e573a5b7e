"""A bounded map whose entries expire, and look-ups that share their work."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from cachetools import Cache

from gateway_project.core.sharing import FairSemaphore, LoopTurns, SharedBudget
from gateway_project.core.stores import caching
from gateway_project.core.stores.caching import Loader, SingleFlight, TTLCache


class TestLoader:
    def test_what_is_asked_meanwhile_leaves_together(self):
        async def scenario():
            trips = []

            async def load_many(keys):
                trips.append(list(keys))
                await asyncio.sleep(0.01)
                return {key: key.upper() for key in keys if key != "missing"}

            loader = Loader(load_many, keys_max=3)
            first = loader.start("a")
            await asyncio.sleep(0)
            found = await asyncio.gather(first, *map(loader.start, ["b", "c", "b", "missing", "d"]))
            return found, trips

        found, trips = asyncio.run(scenario())

        assert found == ["A", "B", "C", "B", None, "D"]
        assert trips == [["a"], ["b", "c", "missing"], ["d"]]

    def test_a_trip_that_fails_fails_its_own_only(self):
        async def scenario():
            async def load_many(keys):
                if "bad" in keys:
                    raise OSError("down")
                return dict.fromkeys(keys, 1)

            loader = Loader(load_many, keys_max=1)
            gone = loader.start("gone")
            gone.cancel()
            bad, good = loader.start("bad"), loader.start("good")
            with pytest.raises(OSError, match="down"):
                await bad
            return await good

        assert asyncio.run(scenario()) == 1

    def test_a_cancelled_trip_leaves_nobody_waiting(self):
        async def scenario():
            async def load_many(keys):
                await asyncio.sleep(60)

            loader = Loader(load_many)
            asked = loader.start("a")
            await asyncio.sleep(0)
            loader._task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asked, 5)

        asyncio.run(scenario())


class TestSingleFlight:
    @staticmethod
    def second_flight(*, wait=0.0, is_late=False):
        """Whether who asks after a flight's end gets one of its own."""

        async def scenario():
            async def work():
                await asyncio.sleep(0.01)

            loop, flights = asyncio.get_running_loop(), SingleFlight(grace_seconds=0.1)
            looked_at = loop.time()
            first, _ = flights.start("a", work)
            assert flights.start("a", work) == (first, False)
            await first
            await asyncio.sleep(wait)
            second, is_new = flights.start(
                "a", work, since=loop.time() + 1 if is_late else looked_at
            )
            await asyncio.sleep(0.2)  # the end of the first one's stay must not touch the second
            return second is not first, is_new, flights.start("a", work)[0].done()

        return asyncio.run(scenario())

    def test_who_looked_before_its_end_joins_it_after(self):
        assert self.second_flight() == (False, False, False)

    def test_who_looked_after_its_end_does_not(self):
        assert self.second_flight(is_late=True) == (True, True, False)

    def test_it_does_not_linger_for_ever(self):
        assert self.second_flight(wait=0.2) == (True, True, False)

    def test_a_failure_does_not_linger(self):
        async def scenario():
            async def fail():
                raise LookupError

            flights = SingleFlight(grace_seconds=60)
            first, _ = flights.start("a", fail)
            await asyncio.wait((first,))
            return flights.start("a", fail, since=0.0)[1]

        assert asyncio.run(scenario())


class TestTTLCache:
    @pytest.fixture
    def clock(self, monkeypatch):
        """`clock.now += 1` passes a second."""
        clock = SimpleNamespace(now=1000.0)
        monkeypatch.setattr(caching, "monotonic", lambda: clock.now)
        return clock

    def held(self, cache):
        """What it has in memory, in both of its maps, whether it would still be given out."""
        assert set(Cache.__iter__(cache._bound)) == set(cache._entries)
        return list(cache._entries)

    def test_each_entry_lasts_as_long_as_it_was_given(self, clock):
        cache = TTLCache(10)
        cache.put("short", 1, seconds=5)
        cache.put("long", 2, seconds=50)
        assert (cache.get("short"), cache.get("long"), cache.get("never")) == (1, 2, None)

        clock.now += 5

        assert (cache.get("short"), cache.get("long")) == (None, 2)

    def test_a_new_entry_drops_all_that_expired_and_no_other(self, clock):
        cache = TTLCache(100)
        for n in range(50):
            cache.put(n, n, seconds=5 if n % 2 else 50)
        clock.now += 6

        cache.put("new", 1, seconds=5)

        assert self.held(cache) == [*range(0, 50, 2), "new"]

    def test_what_expired_makes_room_before_what_is_good(self, clock):
        cache = TTLCache(3)
        cache.put("oldest", 1, seconds=50)
        cache.put("gone", 2, seconds=5)
        cache.put("good", 3, seconds=50)
        clock.now += 6

        cache.put("new", 4, seconds=5)

        assert self.held(cache) == ["oldest", "good", "new"]

    def test_when_full_what_was_written_longest_ago_makes_room(self, clock):
        cache = TTLCache(3)
        for key in "abc":
            cache.put(key, key, seconds=50)
        cache.put("a", "again", seconds=50)
        cache.get("b")  # looking at it does not count

        cache.put("d", "d", seconds=50)

        assert set(self.held(cache)) == {"a", "c", "d"}
        assert cache.get("a") == "again"

    def test_it_is_bounded_by_size_where_values_differ(self, clock):
        cache = TTLCache(100, size_of=len)
        cache.put("a", "x" * 40, seconds=50)
        cache.put("b", "x" * 50, seconds=50)
        assert cache.size == 90

        cache.put("c", "x" * 20, seconds=50)
        assert (self.held(cache), cache.size) == (["b", "c"], 70)

        cache.put("b", "x" * 101, seconds=50)  # larger than all of it: not even the old one stays
        assert (self.held(cache), cache.size) == (["c"], 20)

    def test_a_longer_life_replaces_a_shorter_one_and_none_at_all_ends_it(self, clock):
        cache = TTLCache(3)
        cache.put("a", 1, seconds=5)
        cache.put("a", 2, seconds=50)
        clock.now += 6
        assert cache.get("a") == 2

        cache.put("a", 3, seconds=0)

        assert cache.get("a") is None
        assert self.held(cache) == []

    def test_dropping(self, clock):
        cache = TTLCache(10)
        for n in range(6):
            cache.put(n, n, seconds=50)
        cache.drop(5)
        cache.drop("never")
        cache.drop_where(lambda value: value % 2)
        assert self.held(cache) == [0, 2, 4]

        cache.clear()

        assert self.held(cache) == []
        cache.put("a", 1, seconds=50)
        assert cache.get("a") == 1

    def test_threads_that_write_leave_both_maps_alike(self):
        cache = TTLCache(50)

        def write(seed):
            dice = random.Random(seed)
            for _ in range(2_000):
                key = dice.randrange(100)
                match dice.randrange(3):
                    case 0:
                        cache.put(key, key, seconds=dice.choice((0.0, 0.0005, 50)))
                    case 1:
                        cache.drop(key)
                    case _:
                        assert cache.get(key) in (key, None)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        time.sleep(0.001)
        cache.put("last", 1, seconds=50)  # what was short-lived has gone by now

        assert "last" in self.held(cache)
        assert len(cache) <= 50


class TestSharedBudget:
    def test_one_alone_gets_half_and_each_that_comes_as_much_as_is_left(self):
        budget = SharedBudget(120)

        def most(holder):
            while budget.take(holder, 1):
                pass
            return budget.held(holder)

        assert [most(holder) for holder in "abcd"] == [60, 30, 15, 7]
        assert most("a") == 60  # and no more, though there is room

    def test_what_is_given_back_is_anybodys(self):
        budget = SharedBudget(10)
        assert budget.take("a", 5)
        assert not budget.take("a", 1)
        budget.give_back("a", 5)
        assert (budget.used, budget.room("a"), budget.room("b")) == (0, 5, 5)

    def test_it_forgets_holders_that_hold_nothing(self):
        budget = SharedBudget(10)
        for holder in range(1000):
            assert budget.take(holder, 1)
            budget.give_back(holder, 1)
        assert not budget._held


class TestFairSemaphore:
    def test_holders_take_turns_however_much_one_has_waiting(self):
        async def scenario():
            places, came = FairSemaphore(1), []
            await places.acquire("noisy")

            async def call(holder):
                await places.acquire(holder)
                came.append(holder)
                await asyncio.sleep(0)
                places.release()

            calls = [asyncio.create_task(call("noisy")) for _ in range(50)]
            await asyncio.sleep(0)
            calls += [asyncio.create_task(call(holder)) for holder in ("quiet", "other", "quiet")]
            await asyncio.sleep(0)
            places.release()
            await asyncio.gather(*calls)
            return came

        came = asyncio.run(scenario())

        assert came[:6] == ["noisy", "quiet", "other", "noisy", "quiet", "noisy"]
        assert len(came) == 53

    def test_who_goes_away_takes_no_place_along(self):
        async def scenario():
            places = FairSemaphore(1)
            await places.acquire("a")
            gone = [asyncio.create_task(places.acquire("b")) for _ in range(3)]
            await asyncio.sleep(0)
            gone[0].cancel()
            await asyncio.sleep(0)
            places.release()  # to the second, which is cancelled in the same moment
            gone[1].cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            first = gone[2].done()
            places.release()
            return first, places.locked()

        assert asyncio.run(scenario()) == (True, False)


class TestLoopTurns:
    def begun(self, heaps, pieces):
        """Who began, turn by turn of the loop, when all of that is started at once."""

        async def scenario():
            turns, by_turn, tasks = LoopTurns(pieces), [], []

            async def piece(holder):
                await turns.wait(holder)
                by_turn[-1].append(holder)

            for holder, count in heaps:
                tasks += [asyncio.create_task(piece(holder)) for _ in range(count)]
            while not all(task.done() for task in tasks):
                by_turn.append([])
                await asyncio.sleep(0)
            return by_turn

        return asyncio.run(scenario())

    def test_a_heap_begins_a_few_at_each_turn(self):
        by_turn = self.begun([("noisy", 100)], 8)

        assert max(map(len, by_turn)) == 8
        assert sum(map(len, by_turn)) == 100
        assert sum(map(len, by_turn[:4])) >= 16  # and goes on without a pause

    def test_others_go_on_beside_it(self):
        by_turn = self.begun([("noisy", 100), ("quiet", 2)], 2)
        order = [holder for turn in by_turn for holder in turn]

        assert order.index("quiet") <= 4
        assert order[:8].count("quiet") == 2

    def test_each_loop_has_its_own(self):
        turns = LoopTurns(1)

        async def leave_at_once():
            await turns.wait("a")  # its place comes back in a turn that never comes

        for _ in range(3):
            asyncio.run(asyncio.wait_for(leave_at_once(), 5))
