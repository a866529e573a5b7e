"""Limits, the usage stream, scores and the live queue on a Redis Cluster of three nodes.

What is done at once lies in one slot, so a cluster that is hidden behind one address (a service, a
proxy) serves all of it but Celery, which has a broker of its own then.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from uuid import uuid4

import pytest

from accounts.models import UsageLog
from accounts.usage import stream
from deploy.stores import RedisCluster
from gateway_project.core import ratelimit
from gateway_project.core.stores import addresses, redis
from gateway_project.tests.conftest import need_stores
from gateway_project.tests.hidden_cluster import HiddenCluster
from gateway_project.tests.served import Served, wait_until
from robin.queue.leader import RedisLeaderLock
from robin.queue.scan_store import RedisScanStore
from robin.queue.turns import RedisTurns

pytestmark = [pytest.mark.served, pytest.mark.timeout(180)]
LIMIT = 20


@pytest.fixture(scope="module")
def nodes():
    with ExitStack() as stack:
        yield RedisCluster(stack).nodes


@pytest.fixture
def cluster(nodes):
    hidden = HiddenCluster(nodes)
    yield hidden
    hidden.close()
    assert hidden.refused == []


@pytest.mark.slow
def test_limits_and_the_usage_stream_of_a_served_gateway(
    gateway, engine, cluster, make_key, tmp_path, monkeypatch
):
    need_stores()
    keys = [make_key(rate_limit_per_minute=LIMIT) for _ in range(4)]
    served = Served(tmp_path, WORKERS="2", REDIS_URL=cluster.url)
    try:
        served.wait()
        for key in keys:
            statuses = [served.detect(key).status_code for _ in range(LIMIT + 3)]
            assert statuses == [200] * LIMIT + [429] * 3
    finally:
        served.close()

    client = addresses.client(cluster.url)
    monkeypatch.setattr(redis, "client", lambda: client)
    assert stream.size()[0] > 0
    wait_until(lambda: stream.drain() or not stream.size()[0])
    assert UsageLog.objects.filter(http_status=200).count() == len(keys) * LIMIT
    assert stream.size() == (0, 0)
    client.close()
    # Keys of workspaces lie on several nodes: otherwise nothing was shown.
    assert len(cluster.answered) == 3


def test_calls_that_are_sent_again_and_limits_of_a_page(cluster):
    """`check_once`, `put`, and the limiter of the control plane."""
    client = addresses.client(cluster.url)

    async def scenario():
        pipe = redis.PipelinedConnection(cluster.url)
        pipe.start()
        limiter = ratelimit.RedisLimiter(lambda: pipe, lambda: client)
        found = []
        for _ in range(12):
            subject = f"{{{uuid4()}}}"
            policies = [
                ratelimit.per_minute("minute", subject, 2),
                ratelimit.per_day("day", subject, 9),
            ]
            claim = ratelimit.Claim(f"{subject}:claim", b"mine", 60)
            first = await limiter.check_once(policies, [1, 1], claim)
            again = await limiter.check_once(policies, [1, 1], claim)
            limiter.put(claim.key, b"answer", 60)
            third = limiter.check_sync(policies, [1, 1])
            found.append((first[1], again[1], third.denied))
            assert not first[0].degraded
        await pipe.close()
        return found

    assert asyncio.run(scenario()) == [(None, b"mine", "minute")] * 12
    client.close()


def test_the_live_queue(cluster):
    async def scenario():
        lock, turns = RedisLeaderLock(cluster.url), RedisTurns(cluster.url)
        scans = RedisScanStore(cluster.url)
        token = await lock.acquire()
        assert await lock.store(token, b"picture", b"word")
        turn = await turns.begin()
        await turns.end(0.1)
        await scans.put("names", {}, b"content")
        found = await lock.found(), await scans.parts(["names"]), turn.state
        for one in (lock, turns, scans):
            await one.close()
        return found

    found, parts, state = asyncio.run(scenario())

    assert (found.snapshot, found.messages, parts) == (b"picture", [b"word"], {"names": b"content"})
    assert state == "mine"
