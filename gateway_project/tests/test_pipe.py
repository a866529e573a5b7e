"""The connection to Redis that all requests share: bounded in bytes."""

from __future__ import annotations

import asyncio

import pytest
from django.conf import settings

from gateway_project.core.stores import redis
from gateway_project.core.stores.redis import (
    BATCH_BYTES_MAX,
    COMMAND_BYTES_MAX,
    CommandTooLarge,
    PipelinedConnection,
    RedisUnavailable,
    pack,
)

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.needs_redis,
]
KEY = "gw:test:pipe"


def with_pipe(scenario):
    async def run():
        pipe = PipelinedConnection(settings.REDIS_URL)
        pipe.start()
        try:
            return await scenario(pipe)
        finally:
            await pipe.submit(pack("DEL", KEY))
            await pipe.close()

    return asyncio.run(run())


def test_a_command_that_is_too_large_fails_alone():
    async def scenario(pipe):
        fine, large = pipe.submit(pack("PING")), pipe.submit(pack("SET", KEY, b"x" * (2 << 20)))
        answers = await asyncio.gather(
            fine, large, pipe.submit(pack("PING")), return_exceptions=True
        )
        return answers, await pipe.submit(pack("EXISTS", KEY))

    (before, large, after), exists = with_pipe(scenario)

    assert (before, after, exists) == (b"PONG", b"PONG", 0)
    assert isinstance(large, CommandTooLarge)


def test_a_batch_is_no_larger_than_its_bound(monkeypatch):
    sent = []

    async def scenario(pipe):
        await pipe.ping()
        write = pipe._transport.write

        class Noting:
            def write(self, data):
                sent.append(len(data))
                write(data)

            def __getattr__(self, name):
                return getattr(transport, name)

        transport, pipe._transport = pipe._transport, Noting()
        await asyncio.gather(*(pipe.submit(pack("SET", KEY, b"x" * 200_000)) for _ in range(20)))
        pipe._transport = transport

    with_pipe(scenario)

    assert sum(sent) > 20 * 200_000
    assert max(sent) <= BATCH_BYTES_MAX


def test_what_waits_is_bounded_and_the_rest_is_refused_at_once():
    async def scenario(pipe):
        asked = [pipe.submit(pack("SET", KEY, b"x" * (COMMAND_BYTES_MAX - 100))) for _ in range(40)]
        waiting = pipe._pending_bytes
        answers = await asyncio.gather(*asked, return_exceptions=True)
        return waiting, answers, pipe._pending_bytes, await pipe.submit(pack("PING"))

    waiting, answers, left, after = with_pipe(scenario)

    assert waiting <= redis.WAITING_BYTES_MAX
    refused = [one for one in answers if isinstance(one, RedisUnavailable)]
    assert 20 <= len(refused) < 40
    assert answers.count(b"OK") == 40 - len(refused)
    assert (left, after) == (0, b"PONG")


def noting_batches(pipe):
    """Numbers of commands that leave together."""
    sent, transport = [], pipe._transport

    class Noting:
        def write(self, data):
            sent.append(data.count(b"$4\r\nPING\r\n") + data.count(b"$6\r\nEXISTS\r\n"))
            transport.write(data)

        def __getattr__(self, name):
            return getattr(transport, name)

    pipe._transport = Noting()
    return sent


def test_what_can_wait_leaves_with_what_cannot():
    async def scenario(pipe):
        await pipe.ping()
        sent = noting_batches(pipe)
        later = [pipe.submit(pack("EXISTS", KEY), can_wait=True) for _ in range(3)]
        await asyncio.sleep(0)
        assert sent == []
        await pipe.ping()
        found = await asyncio.gather(*later)
        return list(sent), found

    assert with_pipe(scenario) == ([4], [0, 0, 0])


def test_what_can_wait_leaves_alone_in_the_end_also_behind_a_batch():
    async def scenario(pipe):
        await pipe.ping()
        sent = noting_batches(pipe)
        await pipe.submit(pack("EXISTS", KEY), can_wait=True)
        now = pipe.submit(pack("PING"))
        await asyncio.sleep(0)  # it leaves
        later = pipe.submit(pack("EXISTS", KEY), can_wait=True)
        assert await now == b"PONG"
        found = await later
        return list(sent), found, pipe.backlog()

    assert with_pipe(scenario) == ([1, 1, 1], 0, (0, 0))


def test_what_can_wait_fails_with_the_rest():
    async def scenario(pipe):
        await pipe.ping()
        later = pipe.submit(pack("EXISTS", KEY), can_wait=True)
        pipe._give_up("a reset")
        with pytest.raises(RedisUnavailable, match="a reset"):
            await later
        pipe._backing_off_until = 0.0
        return await pipe.submit(pack("EXISTS", KEY), can_wait=True)  # over a new connection

    assert with_pipe(scenario) == 0


def test_one_timer_watches_all_batches_and_each_has_its_time(monkeypatch):
    async def scenario(pipe):
        await pipe.ping()
        loop, timers = asyncio.get_running_loop(), []
        call_later = loop.call_later
        monkeypatch.setattr(
            loop, "call_later", lambda *args: timers.append(args[1]) or call_later(*args)
        )
        for _ in range(50):
            await pipe.ping()
        watches = [timer for timer in timers if timer == pipe._look]
        silent = pipe._transport
        pipe._transport = type("Silent", (), {"write": lambda *_: None, "abort": silent.abort})()
        with pytest.raises(RedisUnavailable, match="TimeoutError"):
            await pipe.ping()
        pipe._backing_off_until = 0.0
        return len(watches)

    assert with_pipe(scenario) <= 2
