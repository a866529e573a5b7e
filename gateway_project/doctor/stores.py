"""PostgreSQL and Redis: there, on time, set up to keep what they must keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from secrets import token_hex
from time import monotonic
from time import time as host_time
from typing import Any

import psycopg
from django import db
from django.conf import settings
from redis.exceptions import RedisError

from accounts.usage import partitions
from gateway_project.core import clock
from gateway_project.core.stores import addresses, database, liveness, migrations, statements
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


WHY = {
    # What PostgreSQL, libpq and pgbouncer say, and what to do about it; the first that fits.
    "too many clients|remaining connection slots|too many connections": (
        "All its connections are taken: raise max_connections, or lower DATABASE_POOL_MAX or the "
        "number of processes (`doctor database.connections` adds them up)."
    ),
    "password authentication failed|no password supplied|SASL|wrong password": (
        "Correct user or password in DATABASE_URL; %-encode what has a meaning in URLs: @ : / # ?"
    ),
    'database ".*" does not exist|no such database': (
        "Make it (createdb), or correct the name at the end of DATABASE_URL."
    ),
    'role ".*" does not exist': "Make it (createuser), or correct the user in DATABASE_URL.",
    "resolve|Name or service|nodename|getaddrinfo|name resolution": (
        "The name of its host is not known here: correct it in DATABASE_URL, or the name servers "
        "of this host (/etc/resolv.conf)."
    ),
    "refused": (
        "Nobody listens there: start the server, correct host or port in DATABASE_URL, or have it "
        "listen on that address (listen_addresses)."
    ),
    "timeout|timed out|unreachable|no route": "A firewall may stand between, or the host is down.",
    "pg_hba.conf": "Let this host, user and database in by a line of pg_hba.conf, and reload.",
    "transaction blocks not allowed|statement pooling": (
        "That is pgbouncer: set pool_mode = transaction there, not statement."
    ),
    "unsupported startup parameter": (
        "That is pgbouncer: set ignore_startup_parameters = extra_float_digits,options there."
    ),
    "certificate|SSL|ssl": "See sslmode and sslrootcert in DATABASE_URL, and its certificate.",
    "starting up|shutting down|recovery": "Wait until it is up; its own log says what it does.",
}


def what_to_do(reason: str, answers: dict[str, str], otherwise: str) -> str:
    return next((do for one, do in answers.items() if re.search(one, reason)), otherwise)


def first_line(exc: BaseException) -> str:
    return next(iter(str(exc).strip().splitlines()), "") or type(exc).__name__


@check("database")
def examine_database(_: Options) -> Iterator[Finding]:
    try:
        _connect()
    except db.Error as exc:
        reason = first_line(exc)
        do = "Check DATABASE_URL, that the server runs, and that it lets this host in."
        yield error(f"It does not answer: {reason}", what_to_do(reason, WHY, do))
        return
    if not is_postgresql():
        yield warning(NO_POSTGRESQL, "Set DATABASE_URL=postgres://… for more than trying it out.")
        return
    yield from _rights()
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


def _connect() -> None:
    """A transaction, as web processes have them: bounds and all, without a pool, which keeps the
    reason to itself."""
    if not is_postgresql():
        db.connection.ensure_connection()
        return
    try:
        with _unpooled() as connection:
            connection.execute("SELECT 1")
            connection.execute("SELECT 2")
    except psycopg.Error as exc:
        raise db.OperationalError(*exc.args) from exc


def _unpooled() -> psycopg.Connection[tuple[Any, ...]]:
    with statements.bounded(statements.of_requests()):
        parameters = db.connection.get_connection_params()
    return psycopg.connect(**parameters)


def _rights() -> Iterator[Finding]:
    """What this user may do there: its tables, and the partitions of each day."""
    schema, encoding, is_read_only = select(
        "SELECT current_schema(), current_setting('server_encoding'),"
        " current_setting('default_transaction_read_only') = 'on'"
    )
    if encoding != "UTF8":
        yield error(
            f"Its encoding is {encoding}, which does not take every text.",
            "Make another database with ENCODING 'UTF8' (and TEMPLATE template0), and restore "
            "a backup into it.",
        )
    if is_read_only:
        yield error(
            "It takes no writes (default_transaction_read_only is on).",
            "Take that out of postgresql.conf, or of the database or user (ALTER … RESET).",
        )
    if schema is None:
        yield error(
            "This user has no schema to work in.",
            "Make the schema that its search_path names, or RESET search_path.",
        )
        return
    user, may_create = select("SELECT current_user, has_schema_privilege(%s, 'CREATE')", schema)
    if not may_create:
        yield error(
            f"{user} may make nothing in the schema {schema}: neither migrations nor the log's "
            "partition of tomorrow.",
            f'As its owner: ALTER DATABASE … OWNER TO "{user}", or GRANT ALL ON SCHEMA '
            f'{schema} TO "{user}".',
        )
    foreign, example = select(
        "SELECT count(*), min(c.relname) FROM pg_class c"
        " WHERE c.relnamespace = %s::regnamespace AND c.relkind IN ('r', 'p')"
        " AND NOT pg_has_role(c.relowner, 'USAGE')",
        schema,
    )
    if foreign:
        yield error(
            f"{foreign} of its tables, {example} among them, belong to somebody else than {user}: "
            "they cannot be migrated, and perhaps not be written.",
            f'As their owner or a superuser: REASSIGN OWNED BY … TO "{user}".',
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
    web, workers = _may_open()
    needed = sum(web) + sum(workers)
    facts = (
        f"{len(web)} web processes open {sum(web)} connections at most, and {len(workers)} workers "
        f"{sum(workers)}; the server takes {room}, and has {open_now}"
    )
    if is_pooled():
        facts += f". A pooler between decides how many of the {needed} reach it"
        if open_now > 0.8 * room:
            yield warning(
                f"{facts}.", "Keep its default_pool_size x databases below max_connections."
            )
        else:
            yield ok(f"{facts}.")
    elif needed > room:
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


def is_pooled() -> bool:
    """A pooler gives clients process ids of its own making."""
    with _unpooled() as connection:
        found = connection.execute("SELECT pg_backend_pid()").fetchone()
        return found != (connection.info.backend_pid,)


def _may_open() -> tuple[list[int], list[int]]:
    """Connections of each web process and each worker: of those that live, and at least of those
    that these settings would start."""
    living: list[presence.Process] = []
    if settings.REDIS_URL:
        with suppress(RedisError, OSError):
            living = presence.living()
    web = [one.connections or database.web_max() for one in living if one.role == "web"]
    workers = [one.connections or database.pool_max() for one in living if one.role == "worker"]
    web += [database.web_max()] * (settings.WORKERS - len(web))
    return web, workers or [database.pool_max()]


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
    return addresses.client(url, socket_timeout=3, socket_connect_timeout=3)


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


ANSWERED = "NoPermission|MISCONF|OutOfMemory|replica|DB index"
WHY_NOT_REDIS = {
    "Authentication|AUTH": (
        "Correct user or password in {setting} (redis://:password@host:6379/0); %-encode what has "
        "a meaning in URLs."
    ),
    "DB index": (
        "The number at the end of {setting} is a database that it does not have: 0 is always "
        "there. It has to be the same on all hosts."
    ),
    "NoPermission": (
        "Let its user do everything on all keys and channels: ACL SETUSER … ~* &* +@all"
    ),
    "MISCONF|OutOfMemory": "It is full: see its disk and its maxmemory, and what waits in it.",
    "replica": "It is a replica: name the primary in {setting}, or the sentinels.",
    "resolve|Name or service|getaddrinfo|not known|No address": (
        "The name of its host is not known here: correct it in {setting}, or this host's name "
        "servers (/etc/resolv.conf)."
    ),
    "refused": "Nobody listens there: start it, or correct host or port in {setting}.",
    "No master|MasterNotFound": "Its sentinels do not know that name: correct it in {setting}.",
    "SSL|certificate|WRONG_VERSION": (
        "rediss: is for servers that speak TLS, redis: for others; and see its certificate "
        "(SSL_CERT_FILE)."
    ),
    "LOADING": "It is reading its file from disk: wait, and see its log.",
    "Timeout|timed out|closed|reset": (
        "A firewall may stand between, or one of both speaks TLS (rediss:) and the other not."
    ),
}


def _work(client: Any) -> None:
    """What limits, usage, bus and broker ask of it, on a key that ends by itself."""
    key = f"gw:doctor:{token_hex(8)}"
    client.set(key, "1", ex=10)
    client.eval("return redis.call('GET', KEYS[1])", 1, key)
    client.xadd(f"{key}:stream", {"a": "b"})
    client.delete(key, f"{key}:stream")
    client.publish(key, "")


def _examine_redis(setting: str, url: str) -> Iterator[Finding]:
    if not url:
        yield skipped(NO_REDIS)
        return
    try:
        with redis_at(url) as client:
            facts = client.info("server")
            version = str(facts["redis_version"])
            _work(client)
    except (RedisError, OSError) as exc:
        reason = f"{type(exc).__name__}: {first_line(exc)}"
        does = "takes no work" if re.search(ANSWERED, reason) else "does not answer"
        do = "Check {setting}, that the server runs, its password and its firewall."
        yield error(
            f"{setting} {does} ({reason}).",
            what_to_do(reason, WHY_NOT_REDIS, do).format(setting=setting),
        )
        return
    if facts.get("redis_mode") == "cluster" and setting == "REDIS_URL":
        yield error(
            "It is a Redis Cluster, which cannot be the broker of Celery.",
            "Name a Redis of its own, with sentinels if it has to survive its host.",
        )
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_MIN:
        yield error(f"Redis {version} is too old.", "Upgrade to 6.2 or newer, or to Valkey.")
    else:
        yield ok(f"{setting}: Redis {version} answers.")


@check("redis.shared")
def examine_hosts(_: Options) -> Iterator[Finding]:
    """Processes that use this database and write no note into this Redis: they have another."""
    if not settings.REDIS_URL or not is_postgresql():
        yield skipped(NO_REDIS if not settings.REDIS_URL else NO_POSTGRESQL)
        return
    with db.connection.cursor() as cursor:
        cursor.execute(liveness.HOSTS_NAMED)
        named = {str(host) for (host,) in cursor.fetchall() if host}
    noted = {process.host for process in presence.living()}
    # PostgreSQL cuts names off at 63 bytes.
    if lost := sorted(n for n in named if not any(host.startswith(n) for host in noted)):
        yield error(
            f"{', '.join(lost)} use this database, and not this Redis: limits are counted twice, "
            "and tasks and usage of one are not seen by the other.",
            "Give all hosts the same REDIS_URL, its number at the end included, and restart.",
        )
    else:
        yield ok(f"Hosts that use the database and this Redis: {len(named)}.")


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
