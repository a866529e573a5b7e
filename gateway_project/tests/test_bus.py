"""Words between processes, over a Redis of their own that comes and goes."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
import redis as redis_py

from gateway_project.core.stores import bus as bus_module
from gateway_project.core.stores.bus import Bus


@pytest.fixture
def on_it(own_redis, settings, monkeypatch):
    settings.REDIS_URL = own_redis.url
    client = redis_py.Redis.from_url(own_redis.url, socket_connect_timeout=1)
    monkeypatch.setattr(bus_module.redis, "client", lambda: client)
    yield own_redis
    client.close()


def listening(scenario):
    """Run `scenario(bus, heard)` with a bus that listens on one channel."""

    async def main():
        bus, received = Bus(), []
        bus.on("keys", received.append, lambda: received.append("gap"))
        bus.start()
        try:
            await until(lambda: bus.is_listening)
            await scenario(bus, received)
        finally:
            await bus.stop()

    asyncio.run(main())


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - another process' progress cannot be awaited
            await asyncio.sleep(0.02)


def test_it_begins_with_a_gap_and_then_hears(on_it):
    async def scenario(bus, received):
        other = Bus()
        await asyncio.to_thread(other.say, "keys", "one")
        await until(lambda: "one" in received)
        assert received == ["gap", "one"]

    listening(scenario)


def test_the_one_who_says_hears_at_once_even_without_redis(settings):
    settings.REDIS_URL = ""
    bus, received = Bus(), []
    bus.on("keys", received.append, lambda: None)

    bus.say("keys", "one")

    assert received == ["one"]


def test_a_restart_is_a_gap_and_what_could_not_be_said_is_said_then(on_it):
    async def scenario(bus, received):
        on_it.stop()
        await until(lambda: not bus.is_listening)
        await asyncio.to_thread(bus.say, "keys", "while away")
        received.clear()

        on_it.start()
        await until(lambda: bus.is_listening and "while away" in received)

        assert received == ["gap", "while away"]

    listening(scenario)


def test_a_connection_that_went_silent_is_noticed(on_it):
    async def scenario(bus, received):
        on_it.freeze()
        try:
            await until(lambda: not bus.is_listening)
        finally:
            on_it.thaw()
        await until(lambda: bus.is_listening)
        assert received == ["gap", "gap"]

    listening(scenario)


def test_what_waits_to_be_said_is_bounded(settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    bus = Bus()
    for number in range(3):
        bus._send([("keys", str(number + i)) for i in range(500)])

    assert len(bus._unsent) <= bus_module.UNSENT_MAX


def test_it_stops_though_a_cancellation_is_swallowed(settings, monkeypatch):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"

    async def swallow(self, client):
        with suppress(asyncio.CancelledError):  # as redis-py does when its own timeout is due
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def main():
        bus = Bus()
        bus.start()
        await asyncio.sleep(0.05)
        await asyncio.wait_for(bus.stop(), 10)

    monkeypatch.setattr(Bus, "_listen", swallow)
    asyncio.run(main())
