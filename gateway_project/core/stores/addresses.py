"""Where Redis is: at an address, or wherever its sentinels say that the primary is now.

    redis://user:password@host:6379/0
    redis+sentinel://user:password@first:26379,second:26379,third:26379/NAME/0

`rediss` in both for TLS. User and password are those of Redis; sentinels that ask for a password
get it from `?sentinel_password=`. All clients of the project are made here, so that each of them
leaves a server that became a replica: it answers all the same, and refuses every write.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from django_redis.pool import ConnectionFactory
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError
from redis.retry import Retry

from gateway_project.core.stores.silence import of_redis

SCHEMES = {"redis+sentinel": False, "rediss+sentinel": True}
"""And whether by TLS."""
EXAMPLE = "redis+sentinel://first:26379,second:26379/mymaster/0"
SENTINEL_PORT = 26379
PORTS = {"http": 80, "https": 443, "postgres": 5432, "postgresql": 5432}
"""Where nothing else is said; 6379 for all others."""
SENTINEL_SECONDS = 0.5
"""A sentinel that says nothing for so long is passed over for the next."""
TRIES = 1
"""More than the first: what was open to a sentinel may have ended since."""


@dataclass(frozen=True, slots=True)
class Sentinels:
    """Several that watch over one primary, by its name there."""

    hosts: tuple[tuple[str, int], ...]
    name: str
    database: int
    username: str | None
    password: str | None
    sentinel_password: str | None
    is_tls: bool

    @classmethod
    def of(cls, url: str) -> Sentinels | None:
        """None: the URL names Redis itself. Raises ValueError for what cannot be read."""
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            return None
        login, _, places = parts.netloc.rpartition("@")
        username, _, password = login.partition(":")
        name, _, database = parts.path.strip("/").partition("/")
        if not name or not places:
            raise ValueError(f"sentinels are named like {EXAMPLE}")
        hosts = []
        for place in places.split(","):
            host = urlsplit(f"//{place}")
            if not host.hostname:
                raise ValueError(f"sentinels are named like {EXAMPLE}")
            hosts.append((host.hostname, host.port or SENTINEL_PORT))
        [sentinel_password] = parse_qs(parts.query).get("sentinel_password", [None])
        return cls(
            hosts=tuple(hosts),
            name=unquote(name),
            database=int(database or 0),
            username=unquote(username) or None,
            password=unquote(password) or None,
            sentinel_password=sentinel_password,
            is_tls=SCHEMES[parts.scheme],
        )

    @property
    def of_redis(self) -> dict[str, Any]:
        login = {"username": self.username, "password": self.password}
        return {"db": self.database, **{name: value for name, value in login.items() if value}}

    @property
    def of_sentinels(self) -> dict[str, Any]:
        timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), SENTINEL_SECONDS)
        login = {"password": self.sentinel_password} if self.sentinel_password else {}
        return {**timeouts, **login, **({"ssl": True} if self.is_tls else {})}


def hosts(url: str) -> list[tuple[str, int]]:
    """Every host and port that the URL names; none for a socket file."""
    if (found := Sentinels.of(url)) is not None:
        return list(found.hosts)
    parts = urlsplit(url)
    port = parts.port or PORTS.get(parts.scheme, 6379)
    return [(parts.hostname, port)] if parts.hostname else []


def pool(url: str, **options: Any) -> redis.ConnectionPool:
    """redis-py's, with its options for connections."""
    found = Sentinels.of(url)
    if found is None:
        made: Any = _Pool.from_url(url, **options)
        made.connection_class = _leaving(made.connection_class)
        return made  # type: ignore[no-any-return]
    asked = {**found.of_sentinels, "retry": Retry(NoBackoff(), TRIES)}
    sentinel: Any = redis.sentinel.Sentinel(found.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    more = {**options, **found.of_redis, "ssl": found.is_tls}
    return _SentinelsPool(found.name, sentinel, **more)  # type: ignore[no-untyped-call]


class _Together:
    """One that broke is seldom alone: each of the others would cost a time-out of its own."""

    _looked_at = 0.0

    def get_connection(self, *args: Any, **more: Any) -> Any:
        if self._looked_at < of_redis.found_at:
            self._looked_at = monotonic()
            self.disconnect(inuse_connections=False)  # type: ignore[attr-defined]
        return super().get_connection(*args, **more)  # type: ignore[misc]

    def release(self, connection: Any) -> None:
        if not connection.is_connected:
            of_redis.note()
        super().release(connection)  # type: ignore[misc]


class _Pool(_Together, redis.ConnectionPool): ...


class _SentinelsPool(_Together, redis.sentinel.SentinelConnectionPool): ...


def async_pool(url: str, **options: Any) -> redis.asyncio.ConnectionPool:
    found = Sentinels.of(url)
    if found is None:
        made: Any = redis.asyncio.ConnectionPool.from_url(url, **options)
        made.connection_class = _leaving_async(made.connection_class)
        return made  # type: ignore[no-any-return]
    asked = {**found.of_sentinels, "retry": AsyncRetry(NoBackoff(), TRIES)}
    sentinel: Any = redis.asyncio.sentinel.Sentinel(found.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
    more = {**options, **found.of_redis, "ssl": found.is_tls}
    return _AsyncPool(found.name, sentinel, **more)  # type: ignore[no-untyped-call]


class _AsyncPool(redis.asyncio.sentinel.SentinelConnectionPool):
    """Closes what is open to the sentinels as well."""

    async def aclose(self) -> None:
        await super().aclose()
        for one in self.sentinel_manager.sentinels:
            await one.aclose()


def client(url: str, **options: Any) -> redis.Redis:
    return redis.Redis.from_pool(pool(url, **options))


def async_client(url: str, **options: Any) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_pool(async_pool(url, **options))


class CacheConnections(ConnectionFactory):  # type: ignore[misc]
    """Of django-redis, which asks for a pool by the URL of its cache (`CONNECTION_FACTORY`)."""

    def get_connection_pool(self, params: dict[str, Any]) -> Any:
        options = {**params, **self.pool_cls_kwargs}
        return pool(options.pop("url"), **options)


def broker(url: str) -> tuple[str, dict[str, Any]]:
    """The URL as Celery reads it, and what its transport has to know beside."""
    found = Sentinels.of(url)
    if found is None:
        return url, {}
    login = f"{quote(found.username or '', '')}:{quote(found.password or '', '')}@"
    login = "" if login == ":@" else login
    urls = [f"sentinel://{login}{host}:{port}/{found.database}" for host, port in found.hosts]
    return ";".join(urls), {"master_name": found.name, "sentinel_kwargs": found.of_sentinels}


def channel_host(url: str, **options: Any) -> dict[str, Any]:
    """An entry of `hosts` of channels-redis."""
    found = Sentinels.of(url)
    if found is None:
        return {"address": url, **options}
    return {
        "sentinels": found.hosts,
        "master_name": found.name,
        "sentinel_kwargs": found.of_sentinels,
        **found.of_redis,
        **({"ssl": True} if found.is_tls else {}),
        **options,
    }


def is_tls(url: str) -> bool:
    return urlsplit(url).scheme.startswith("rediss")


# redis-py does this for sentinels' connections alone. A server that was demoted keeps those that
# are open, where nobody closes them: behind a name or an address that moves to the next primary.


@lru_cache
def _leaving(kind: type[Any]) -> type[Any]:
    class Leaving(kind):  # type: ignore[misc]
        def read_response(self, *args: Any, **more: Any) -> Any:
            try:
                return super().read_response(*args, **more)
            except ReadOnlyError:
                self.disconnect()
                raise RedisConnectionError("this server is a replica now") from None

    return Leaving


@lru_cache
def _leaving_async(kind: type[Any]) -> type[Any]:
    class Leaving(kind):  # type: ignore[misc]
        async def read_response(self, *args: Any, **more: Any) -> Any:
            try:
                return await super().read_response(*args, **more)
            except ReadOnlyError:
                await self.disconnect()
                raise RedisConnectionError("this server is a replica now") from None

    return Leaving
