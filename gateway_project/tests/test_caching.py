"""Look-ups that share their work."""

from __future__ import annotations

import asyncio

import pytest

from gateway_project.core.caching import Loader, SingleFlight


class TestSingleFlight:
    def test_a_held_flight_is_joined_until_its_result_is_where_all_look_first(self):
        async def scenario():
            flights, runs = SingleFlight(), []

            async def work():
                runs.append(1)
                return len(runs)

            kept = asyncio.get_running_loop().create_future()
            flight, _ = flights.start("a", work)
            flights.hold("a", kept)
            await flight
            late, is_new = flights.start("a", work)
            assert (await late, is_new) == (1, False)
            kept.set_result(None)
            await asyncio.sleep(0)
            return await flights.do("a", work)

        assert asyncio.run(scenario()) == 2

    def test_what_is_kept_before_it_ends_ends_as_usual(self):
        async def scenario():
            flights = SingleFlight()
            kept = asyncio.get_running_loop().create_future()

            async def work():
                flights.hold("a", kept)
                kept.set_result(None)
                await asyncio.sleep(0.01)

            await flights.do("a", work)
            return flights._flights, flights._held

        assert asyncio.run(scenario()) == ({}, set())


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
