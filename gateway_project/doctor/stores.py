"""PostgreSQL and Redis: there, on time, set up to keep what they must keep."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from time import monotonic
from time import time as host_time
from typing import Any

from django import db
from django.conf import settings
from redis import Redis
from redis.exceptions import RedisError

from accounts.usage import partitions
from gateway_project.core import clock
from gateway_project.core.stores import database, migrations
from gateway_project.doctor.examination import Finding, Options, check, error, ok, skipped, warning
from gateway_project.system import presence

SKEW_SECONDS, SKEW_SECONDS_BAD = 1.0, 10.0
POSTGRESQL_MIN = 150000
REDIS_MIN = (6, 2)
NO_REDIS = "REDIS_URL is not set: this is one process that keeps all in memory."
NO_POSTGRESQL = "DATABASE_URL names no PostgreSQL: this is one process with a file."


def is_postgresql() -> bool:
    return db.connection.vendor == "postgresql"


def skew(name: str, answer: float, asked_at: float) -> Finding:
    """How far the host is off a store that said `answer` (Unix seconds) to a question."""
    took = monotonic() - asked_at
    off = host_time() - took / 2 - answer
    if abs(off) < SKEW_SECONDS + took:
        return ok(f"This host's clock is within {abs(off):.2f} s of {name}'s.")
    say = error if abs(off) >= SKEW_SECONDS_BAD else warning
    direction = "ahead of" if off > 0 else "behind"
    return say(
        f"This host's clock is {abs(off):.1f} s {direction} {name}'s.",
        "Run an NTP service on both hosts (systemd-timesyncd, chrony). The gateway goes by the "
        "stores' clocks, but certificates and logs go by this one.",
    )


def select(sql: str, *parameters: Any) -> list[Any]:
    """The first row of what a statement finds; empty: none."""
    with db.connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        row = cursor.fetchone()
    return list(row or ())


@check("database")
def examine_database(_: Options) -> Iterator[Finding]:
    try:
        db.connection.ensure_connection()
    except db.Error as exc:
        reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        yield error(
            f"It does not answer: {reason}",
            "Check DATABASE_URL, that the server runs and lets this host in (pg_hba.conf), and "
            "the password.",
        )
        return
    if not is_postgresql():
        yield warning(NO_POSTGRESQL, "Set DATABASE_URL=postgres://… for more than trying it out.")
        return
    version = int(select("SELECT current_setting('server_version_num')")[0])
    if version < POSTGRESQL_MIN:
        yield error(
            f"PostgreSQL {version // 10000} is older than {POSTGRESQL_MIN // 10000}.",
            "Upgrade the server: partitions are detached in a way that it does not know.",
        )
    else:
        yield ok(f"PostgreSQL {version // 10000}.{version % 10000} answers.")
    if select("SELECT pg_is_in_recovery()")[0]:
        yield error(
            "It is a standby, which takes no writes.", "Let DATABASE_URL name the primary server."
        )
    for name in ("fsync", "full_page_writes"):
        if select("SELECT current_setting(%s)", name)[0] != "on":
            yield error(
                f"{name} is off: a crash of the server may destroy the database.",
                f"Set {name} = on in postgresql.conf.",
            )


@check("database.migrations")
def examine_migrations(_: Options) -> Iterator[Finding]:
    missing = migrations.find_missing()
    if missing:
        app, name = missing[0]
        yield error(
            f"{len(missing)} migrations of this version did not run, {app}.{name} among them.",
            f"Run: {migrations.COMMAND}",
        )
    else:
        yield ok("All migrations of this version are there.")


@check("database.clock")
def examine_clock_of_database(_: Options) -> Iterator[Finding]:
    if not is_postgresql():
        yield skipped(NO_POSTGRESQL)
        return
    db.connection.ensure_connection()
    asked_at = monotonic()
    yield skew(
        "PostgreSQL", float(select("SELECT extract(epoch FROM clock_timestamp())")[0]), asked_at
    )


@check("database.connections")
def examine_connections(_: Options) -> Iterator[Finding]:
    """What all processes may open together, against what the server lets in."""
    if not is_postgresql():
        yield skipped(NO_POSTGRESQL)
        return
    most = int(select("SELECT current_setting('max_connections')")[0])
    kept = int(select("SELECT current_setting('superuser_reserved_connections')")[0])
    room = most - kept
    open_now = select(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    )[0]
    pool = settings.DATABASES["default"].get("OPTIONS", {}).get("pool") or {}
    pool_max = int(pool.get("max_size", 1))
    web, workers = _processes()
    needed = web * (pool_max + database.LANE.size) + workers * pool_max
    facts = (
        f"{web} web processes x ({pool_max} + {database.LANE.size}) + {workers} workers "
        f"x {pool_max} = {needed} connections at most; the server takes {room}, and has {open_now}"
    )
    if needed > room:
        yield error(
            f"The pools may ask for more than there is: {facts}.",
            f"Lower DATABASE_POOL_MAX, raise max_connections to {needed + kept + 20} (and restart "
            "PostgreSQL), or put pgbouncer in transaction mode between (docs/settings.md).",
        )
    elif needed > 0.8 * room:
        yield warning(
            f"One more process may be too many: {facts}.",
            "Raise max_connections, or lower DATABASE_POOL_MAX, before adding processes.",
        )
    else:
        yield ok(f"{facts}.")


def _processes() -> tuple[int, int]:
    """Web processes and workers that live; at least those that these settings would start."""
    roles: list[str] = []
    if settings.REDIS_URL:
        try:
            roles = [process.role for process in presence.living()]
        except (RedisError, OSError):
            roles = []
    return max(settings.WORKERS, roles.count("web")), max(1, roles.count("worker"))


@check("database.partitions")
def examine_partitions(_: Options) -> Iterator[Finding]:
    if not is_postgresql():
        yield skipped(NO_POSTGRESQL)
        return
    today = clock.now().date()
    days = set(partitions.partition_days())
    ahead = 0
    while today + timedelta(days=ahead + 1) in days:
        ahead += 1
    do = (
        "A worker makes them (task accounts.tasks.tend_usage_log, each minute): see that one runs "
        "with the queue `usage`, and what its log says."
    )
    if today not in days:
        yield error("The request log has no partition for today.", do)
    elif ahead < 2:
        yield error(f"The request log has partitions for {ahead} days ahead.", do)
    elif ahead < partitions.PARTITIONS_AHEAD_DAYS - 1:
        yield warning(f"The request log has partitions for {ahead} days ahead.", do)
    else:
        yield ok(f"The request log has partitions for {ahead} days ahead.")


@check("database.age")
def examine_age(_: Options) -> Iterator[Finding]:
    """PostgreSQL stops taking writes at two thousand million transactions without a freeze."""
    if not is_postgresql():
        yield skipped(NO_POSTGRESQL)
        return
    age = int(
        select("SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database()")[0]
    )
    if age > 1_000_000_000:
        yield error(
            f"The oldest transaction is {age:,} transactions old; at 2,000 million it stops.",
            "Find what holds vacuum up: long transactions, prepared ones, replication slots.",
        )
    else:
        yield ok("Vacuum keeps up with transaction ids.")


# -- Redis ----------------------------------------------------------------------------------------


def redis_at(url: str) -> Any:
    return Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)


@check("redis")
def examine_redis(_: Options) -> Iterator[Finding]:
    yield from _examine_redis("REDIS_URL", settings.REDIS_URL)


@check("cache")
def examine_cache(_: Options) -> Iterator[Finding]:
    if settings.REDIS_URL and not settings.CACHE_REDIS_URL:
        yield skipped(
            "CACHE_REDIS_URL is not set: scores are remembered in the Redis of the limits."
        )
        return
    yield from _examine_redis("CACHE_REDIS_URL", settings.CACHE_REDIS_URL)


def _examine_redis(setting: str, url: str) -> Iterator[Finding]:
    if not url:
        yield skipped(NO_REDIS)
        return
    try:
        with redis_at(url) as client:
            version = str(client.info("server")["redis_version"])
    except (RedisError, OSError) as exc:
        yield error(
            f"{setting} does not answer ({type(exc).__name__}).",
            f"Check {setting}, that the server runs, its password and its firewall.",
        )
        return
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_MIN:
        yield error(f"Redis {version} is too old.", "Upgrade to 6.2 or newer, or to Valkey.")
    else:
        yield ok(f"{setting}: Redis {version} answers.")


@check("redis.clock")
def examine_clock_of_redis(_: Options) -> Iterator[Finding]:
    if not settings.REDIS_URL:
        yield skipped(NO_REDIS)
        return
    with redis_at(settings.REDIS_URL) as client:
        client.ping()
        asked_at = monotonic()
        seconds, micros = client.time()
        yield skew("Redis", seconds + micros / 1e6, asked_at)


@check("redis.memory")
def examine_memory(_: Options) -> Iterator[Finding]:
    """The Redis of limits and queues must refuse rather than forget; the cache's, forget."""
    if not settings.REDIS_URL:
        yield skipped(NO_REDIS)
        return
    with redis_at(settings.REDIS_URL) as client:
        facts = client.info("memory")
    policy = facts["maxmemory_policy"]
    if policy != "noeviction":
        yield error(
            f"REDIS_URL drops keys when it is full (maxmemory-policy {policy}): limits would start "
            "anew, and tasks and usage that wait would be lost.",
            "Set maxmemory-policy noeviction there, and give CACHE_REDIS_URL another Redis for "
            "what may be forgotten.",
        )
    else:
        yield ok("REDIS_URL never drops keys (noeviction).")
    yield from _room("REDIS_URL", facts)
    if not settings.CACHE_REDIS_URL:
        return
    with redis_at(settings.CACHE_REDIS_URL) as client:
        facts = client.info("memory")
    policy = facts["maxmemory_policy"]
    if not facts["maxmemory"]:
        yield warning(
            "CACHE_REDIS_URL has no bound (maxmemory 0): it grows until the host is full.",
            "Set maxmemory, such as 256mb, and maxmemory-policy allkeys-lru.",
        )
    elif policy == "noeviction":
        yield warning(
            "CACHE_REDIS_URL refuses to remember once it is full (noeviction).",
            "Set maxmemory-policy allkeys-lru there.",
        )
    else:
        yield ok(f"CACHE_REDIS_URL forgets the least needed ({policy}).")


def _room(setting: str, facts: dict[str, Any]) -> Iterator[Finding]:
    most, used = int(facts["maxmemory"]), int(facts["used_memory"])
    if most and used > 0.8 * most:
        yield error(
            f"{setting} uses {used >> 20} of {most >> 20} MiB: once full it refuses to write.",
            "See what waits (gateway_usage_stream_entries, gateway_celery_queue_length): a worker "
            "may be missing. Else raise maxmemory.",
        )


@check("redis.persistence")
def examine_persistence(_: Options) -> Iterator[Finding]:
    if not settings.REDIS_URL:
        yield skipped(NO_REDIS)
        return
    with redis_at(settings.REDIS_URL) as client:
        facts = client.info("persistence")
        save = _config(client, "save")
    if facts["aof_enabled"] and facts.get("aof_last_write_status", "ok") != "ok":
        yield error("Redis cannot write its append-only file.", "See its log: is its disk full?")
    elif facts["aof_enabled"]:
        yield ok("Redis keeps an append-only file.")
    elif save is None or save:
        yield warning(
            "Redis keeps no append-only file, only snapshots: after a crash, tasks and usage of "
            "the minutes since the last one are lost.",
            "Set appendonly yes.",
        )
    else:
        yield error(
            "Redis keeps nothing on disk: a restart loses tasks and usage that wait.",
            "Set appendonly yes on the Redis of REDIS_URL.",
        )
    if facts.get("rdb_last_bgsave_status", "ok") != "ok":
        yield error("Redis' last snapshot failed.", "See its log: is its disk or memory full?")


def _config(client: Any, name: str) -> str | None:
    """None: a managed Redis does not tell."""
    try:
        return str(client.config_get(name).get(name, ""))
    except RedisError:
        return None
