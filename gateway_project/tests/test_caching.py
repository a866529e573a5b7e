"""Look-ups that share their work."""

from __future__ import annotations

import asyncio

import pytest

from gateway_project.core.stores import caching
from gateway_project.core.stores.caching import Loader, SingleFlight, TTLCache


class TestTTLCache:
    @pytest.fixture
    def at(self, monkeypatch):
        """`at(seconds)` sets the cache's clock."""
        now = [0.0]
        monkeypatch.setattr(caching, "monotonic", lambda: now[0])
        return lambda seconds: now.__setitem__(0, seconds)

    def test_what_has_expired_leaves_without_being_asked_for(self, at):
        cache: TTLCache[int, str] = TTLCache(1000)
        for key in range(10):
            at(key)
            cache.put(key, "value", seconds=5)

        assert len(cache) == 6  # those of the last five seconds, to the very end
        at(100)
        cache.put(0, "again", seconds=5)
        assert len(cache) == 1

    def test_one_that_is_written_again_starts_anew(self, at):
        cache: TTLCache[str, int] = TTLCache(1000)
        cache.put("a", 1, seconds=5)
        cache.put("b", 1, seconds=5)
        at(4)
        cache.put("a", 2, seconds=5)
        at(6)
        cache.put("c", 1, seconds=5)

        assert [cache.get(key) for key in "abc"] == [2, None, 1]
        assert len(cache) == 2

    def test_when_full_the_oldest_makes_room(self, at):
        cache: TTLCache[int, int] = TTLCache(3)
        for key in range(5):
            cache.put(key, key, seconds=60)

        assert [cache.get(key) for key in range(5)] == [None, None, 2, 3, 4]


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

            loop, flights = asyncio.get_running_loop(), SingleFlight(linger_seconds=0.1)
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

            flights = SingleFlight(linger_seconds=60)
            first, _ = flights.start("a", fail)
            await asyncio.wait((first,))
            return flights.start("a", fail, since=0.0)[1]

        assert asyncio.run(scenario())
