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
    pytest.mark.skipif(not settings.REDIS_URL, reason="needs Redis: `make test` starts it"),
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
