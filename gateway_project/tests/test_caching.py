"""Look-ups that share their work."""

from __future__ import annotations

import asyncio

import pytest

from gateway_project.core.caching import Loader


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
