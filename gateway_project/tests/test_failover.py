"""Redis fails over: to another server behind the same address, and to one that sentinels name.

Every way in which the project talks to Redis goes on with the new primary, and leaves a server that
became a replica: that one answers everything but writes.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django_redis.cache import RedisCache
from redis.exceptions import RedisError

from deploy.stores import RedisPair, wait_for
from gateway_project.core.stores import addresses, redis
from gateway_project.environment import Environment
from gateway_project.tests.private_redis import PrivateRedis
from gateway_project.tests.proxy import Proxy
from gateway_project.tests.test_clock import ROOT, modules

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(120)]
KEY = "gw:test:failover"
TIMEOUTS = {"socket_timeout": 1, "socket_connect_timeout": 1}


class Way:
    """`write(value)` raises what its users take for a Redis that is away, or it is written."""

    def __init__(self, url):
        self.url = url

    def close(self):
        pass


class Pipe(Way):
    """Of the data plane; all in one event loop."""

    def __init__(self, url):
        super().__init__(url)
        self._loop = asyncio.new_event_loop()
        self._pipe = redis.PipelinedConnection(url, backoff_seconds=0.1)
        self._do(lambda: self._pipe.start())

    def _do(self, act):
        async def run():
            found = act()
            return await found if found is not None else None

        return self._loop.run_until_complete(run())

    def write(self, value):
        self._do(lambda: self._pipe.submit(redis.pack("SET", KEY, value)))

    def close(self):
        self._loop.run_until_complete(self._pipe.close())
        self._loop.close()


class Asynchronous(Way):
    """Of the live queue and the bus."""

    def __init__(self, url):
        super().__init__(url)
        self._loop = asyncio.new_event_loop()
        self._client = addresses.async_client(url, **TIMEOUTS)

    def write(self, value):
        self._loop.run_until_complete(self._client.set(KEY, value))

    def close(self):
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()


class Synchronous(Way):
    """Of the doctor and of the queues' lengths."""

    def __init__(self, url):
        super().__init__(url)
        self._client = addresses.client(url, **TIMEOUTS)

    def write(self, value):
        self._client.set(KEY, value)

    def close(self):
        self._client.close()


class Cache(Way):
    """Of the control plane: what settings.CACHES says, elsewhere."""

    def __init__(self, url):
        super().__init__(url)
        factory = {"CONNECTION_FACTORY": "gateway_project.core.stores.addresses.CacheConnections"}
        self._client = RedisCache([url], {"OPTIONS": factory}).client.get_client()

    def write(self, value):
        self._client.set(KEY, value)

    def close(self):
        self._client.connection_pool.disconnect()


WAYS = [Pipe, Asynchronous, Synchronous, Cache]
AWAY = (redis.RedisUnavailable, RedisError)


def write_at_last(way, value):
    """Insist, as a loop that comes back does."""

    def tried():
        try:
            way.write(value)
        except AWAY:
            return False
        return True

    wait_for("a write", tried, 15)


@pytest.mark.parametrize("kind", WAYS)
def test_a_server_that_became_a_replica_is_left(kind, tmp_path_factory):
    """Its connection stays open; the address leads to the new primary."""
    folders = tmp_path_factory.mktemp("old"), tmp_path_factory.mktemp("new")
    with (
        PrivateRedis(folders[0]) as old,
        PrivateRedis(folders[1]) as new,
        Proxy("127.0.0.1", old.port) as proxy,
    ):
        way = kind(f"redis://127.0.0.1:{proxy.port}/0")
        way.write("before")
        with old.client as client:
            client.replicaof("127.0.0.1", new.port)
        proxy._target = "127.0.0.1", new.port

        write_at_last(way, "after")

        with new.client as client:
            assert client.get(KEY) == b"after"
        way.close()


@pytest.fixture(scope="module")
def pair():
    with ExitStack() as stack:
        yield RedisPair(stack)


@pytest.fixture
def failed_over(pair):
    """`failed_over(write)` kills the primary between two writes; the old one is a replica then."""

    def act(write):
        write("before")
        primary = pair.primary()
        pair.kill(primary)
        try:
            wait_for("a failover", lambda: pair.primary() != primary, 30)
            write("after")
            return pair.client(pair.primary()).get(KEY)
        finally:
            pair.start(primary)
            wait_for("the old primary as a replica", pair.has_replica)

    return act


@pytest.mark.served
def test_whoever_the_sentinels_name_is_asked(pair, failed_over):
    """All ways at once: a failover takes seconds."""
    ways = [kind(pair.url) for kind in WAYS]

    def write(value):
        for way in ways:
            write_at_last(way, value)

    assert failed_over(write) == b"after"
    for way in ways:
        way.close()


SENTINELS = "redis+sentinel://me:p%40ss@one:26379,two,[::1]:26380/mymaster/3?sentinel_password=s"


def test_what_an_address_of_sentinels_says():
    found = addresses.Sentinels.of(SENTINELS)

    assert found.hosts == (("one", 26379), ("two", 26379), ("::1", 26380))
    assert (found.name, found.database, found.is_tls) == ("mymaster", 3, False)
    assert found.of_redis == {"db": 3, "username": "me", "password": "p@ss"}
    assert found.of_sentinels["password"] == "s"
    assert addresses.hosts(SENTINELS) == list(found.hosts)
    url, options = addresses.broker(SENTINELS)
    assert url.split(";")[1] == "sentinel://me:p%40ss@two:26379/3"
    assert options["master_name"] == "mymaster"
    assert addresses.broker("redis://x/1") == ("redis://x/1", {})
    assert addresses.channel_host("redis://x/1", a=1) == {"address": "redis://x/1", "a": 1}
    assert addresses.channel_host(SENTINELS)["sentinels"] == found.hosts


@pytest.mark.parametrize(
    "url",
    [
        *("redis+sentinel://one:26379", "redis+sentinel:///mymaster/0"),
        *("redis+sentinel://one:port/mymaster", "redis+sentinel://one,,two/mymaster"),
        *("redis+sentinel://one/mymaster/zero", "redis+sentinel://:se/cret@one/mymaster"),
        "redis://:se/cret@host:6379/0",
    ],
)
def test_an_address_that_cannot_be_read_is_a_sentence_without_secrets(url, monkeypatch):
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(ImproperlyConfigured, match="REDIS_URL must look like") as refused:
        Environment().store_url("REDIS_URL")
    assert "cret" not in str(refused.value)


MAKES_A_CLIENT = re.compile(r"\bfrom_url\(|\b(Strict)?Redis\(|\bConnectionPool\(|\bSentinel\(")


def test_every_client_is_made_in_one_place():
    """One that is made elsewhere knows no sentinels, and stays with a replica."""
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in modules()
        if MAKES_A_CLIENT.search(path.read_text()) and path.name != "addresses.py"
    ]
    assert elsewhere == []
    assert MAKES_A_CLIENT.search(Path(addresses.__file__).read_text())
