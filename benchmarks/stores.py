"""Private databases on the PostgreSQL and Redis named in the environment.

A run writes hundreds of thousands of rows, so it never uses the named database itself: each
contender gets a new PostgreSQL database and an empty Redis database number, removed at the end.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis
from psycopg import sql

from benchmarks.processes import BenchError


@dataclass(frozen=True)
class Stores:
    """Where one contender keeps its data."""

    database_url: str
    redis_url: str

    def count(self, table: str) -> int:
        """Rows of a table."""
        with psycopg.connect(self.database_url) as connection:
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
            row = connection.execute(query).fetchone()
        return int(row[0]) if row else 0

    def wait_for_rows(self, table: str, expected: int, seconds: float = 20.0) -> int:
        """Rows of a table once there are `expected`, or none came for 5 s, or time is up."""
        deadline = time.monotonic() + seconds
        rows, grew_at = self.count(table), time.monotonic()
        while rows < expected and time.monotonic() < deadline and time.monotonic() - grew_at < 5:
            time.sleep(0.5)
            now = self.count(table)
            if now > rows:
                rows, grew_at = now, time.monotonic()
        return rows


def _with_path(url: str, path: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=path))


def named_stores() -> tuple[str, str]:
    """The addresses of PostgreSQL and Redis in the environment. Raises `BenchError`."""
    try:
        return os.environ["DATABASE_URL"], os.environ["REDIS_URL"]
    except KeyError as error:
        raise BenchError(f"{error.args[0]} is not set; deploy/services.py gives one.") from error


@contextmanager
def private_stores(database_url: str, redis_url: str, name: str) -> Iterator[Stores]:
    """New, empty stores for the contender `name`, gone afterwards."""
    database_url = "postgresql://" + database_url.partition("://")[2]
    database = f"bench_{name}_{secrets.token_hex(4)}"
    identifier = sql.Identifier(database)
    try:
        with psycopg.connect(database_url, autocommit=True, connect_timeout=10) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    except psycopg.Error as error:
        raise BenchError(
            f"Cannot create a database on DATABASE_URL (the role needs CREATEDB): {error}"
        ) from error
    try:
        number = _empty_redis_database(redis_url)
        private_redis = _with_path(redis_url, f"/{number}")
        try:
            yield Stores(_with_path(database_url, f"/{database}"), private_redis)
        finally:
            with suppress(redis.RedisError), redis.Redis.from_url(private_redis) as client:
                client.flushdb()
    finally:
        with (
            suppress(psycopg.Error),
            psycopg.connect(database_url, autocommit=True, connect_timeout=10) as connection,
        ):
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(identifier)
            )


def _empty_redis_database(redis_url: str) -> int:
    """The highest Redis database number without a key, marked with one so the next differs."""
    try:
        for number in range(15, 0, -1):
            with redis.Redis.from_url(_with_path(redis_url, f"/{number}")) as client:
                if client.dbsize() == 0:
                    client.set("bench:reserved", "1", ex=3600)
                    return number
    except redis.RedisError as error:
        raise BenchError(f"Cannot use REDIS_URL: {error}") from error
    raise BenchError("No empty Redis database number is left on REDIS_URL (1 to 15 are in use).")


def versions(database_url: str, redis_url: str) -> dict[str, str]:
    """Versions of both servers, for the description of the machine."""
    url = "postgresql://" + database_url.partition("://")[2]
    try:
        with psycopg.connect(url, connect_timeout=10) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        with redis.Redis.from_url(redis_url) as client:
            info = client.info("server")
    except (psycopg.Error, redis.RedisError) as error:
        raise BenchError(f"Cannot reach DATABASE_URL or REDIS_URL: {error}") from error
    return {
        "PostgreSQL": str(row[0]).split()[0] if row else "?",
        "Redis": str(info["redis_version"]),
    }
