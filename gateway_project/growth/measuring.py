"""How long each thing takes on the filled database, and how long its longest transaction was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import psycopg
from django.conf import settings
from django.db import connection

from accounts.models import ApiKey
from accounts.usage import partitions, stream
from accounts.usage.rows import Batch
from gateway_project.core import clock
from gateway_project.core.stores import redis
from gateway_project.growth.asking import DRAIN, LIMITS_MS, TASK, NotAnswered, Subject, usage_row
from gateway_project.growth.filling import Filled

ROUNDS = 5
TRANSACTION_MS_MAX = 1_000.0
ROWS_A_SECOND = 8_000
SAMPLE_SECONDS = 0.01


class Result(NamedTuple):
    """Milliseconds; `is_ok` within its limit, and of a task with short transactions."""

    kind: str
    name: str
    ms: float
    limit_ms: float
    transaction_ms: float
    queries: int
    is_ok: bool


def measure(subjects: Iterable[Subject], rounds: int = ROUNDS) -> Iterator[Result]:
    """Warm: each is asked once before it is timed, but for tasks, of which the first counts."""
    for kind, name, ask in subjects:
        is_once = kind == TASK or rounds == 1
        spent: list[float] = []
        queries = _Counter()
        with watched() as longest, connection.execute_wrapper(queries):
            try:
                if not is_once:
                    ask()
                    queries.count = 0
                for _ in range(1 if is_once else rounds):
                    started = perf_counter()
                    ask()
                    spent.append((perf_counter() - started) * 1000)
            except NotAnswered as exc:
                yield Result(kind, str(exc), 0, 0, 0, 0, is_ok=False)
                continue
        took, limit = median(spent), LIMITS_MS[kind]
        is_ok = took < limit and (kind != TASK or longest() < TRANSACTION_MS_MAX)
        yield Result(kind, name, took, limit, longest(), queries.count // len(spent), is_ok)


class _Counter:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, execute: Any, *args: Any) -> Any:
        self.count += 1
        return execute(*args)


@contextmanager
def watched() -> Iterator[Callable[[], float]]:
    """The longest transaction of this connection meanwhile, in ms, as another one sees it."""
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    longest, is_over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal longest
        with _another() as other:
            while not is_over.wait(SAMPLE_SECONDS):
                row = other.execute(
                    "SELECT extract(epoch FROM clock_timestamp() - xact_start) * 1000 "
                    "FROM pg_stat_activity WHERE pid = %s",
                    [pid],
                ).fetchone()
                longest = max(longest, float(row[0] or 0.0) if row else 0.0)

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    try:
        yield lambda: longest
    finally:
        is_over.set()
        thread.join()


def _another() -> psycopg.Connection[Any]:
    """A connection of its own, past the pool."""
    database = connection.settings_dict
    return psycopg.connect(
        dbname=database["NAME"],
        user=database["USER"],
        password=database["PASSWORD"],
        host=database["HOST"],
        port=database["PORT"] or 5432,
        autocommit=True,
    )


def drained(filled: Filled, rows: int, *, keys: int) -> Iterator[Result]:
    """A backlog of the stream, spread over so many keys; every row raises an event."""
    known = list(ApiKey.objects.filter(workspace=filled.big).values_list("pk", "workspace_id"))
    if keys > len(known):
        known += list(
            ApiKey.objects.exclude(workspace=filled.big).values_list("pk", "workspace_id")[:keys]
        )
    known = known[:keys]
    client = redis.client()
    now = clock.now() - timedelta(seconds=30)
    for first in range(0, rows, 1_000):
        batch = Batch(
            clock.new_id(),
            [usage_row(*known[n % len(known)], now, n) for n in range(first, first + 1_000)],
            {},
        )
        client.xadd(stream.STREAM, {"id": str(batch.id), "rows": batch.packed()})
    stored, started = 0, perf_counter()
    with watched() as longest:
        while client.xlen(stream.STREAM):
            stored += stream.drain()
    a_second = stored / (perf_counter() - started)
    is_ok = a_second >= ROWS_A_SECOND and longest() < TRANSACTION_MS_MAX
    name = f"drain of {stored:,} rows of {len(known):,} keys: {a_second:,.0f} rows a second"
    ms = (perf_counter() - started) * 1000
    yield Result(DRAIN, name, ms, stored / ROWS_A_SECOND * 1000, longest(), 0, is_ok)


def beside_a_reader() -> Iterator[Result]:
    """Partitions are made and dropped while somebody reads the log, as a dump does for hours."""
    day = clock.now().date() + timedelta(days=40)
    with _another() as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT 1 FROM accounts_usagelog LIMIT 1")
        for name, act in (
            ("make a partition beside a reader", lambda: partitions.ensure_partitions([day])),
            ("try to drop one beside a reader", partitions.prune),
        ):
            started = perf_counter()
            act()
            ms = (perf_counter() - started) * 1000
            yield Result("task", name, ms, LIMITS_MS[TASK], 0, 0, ms < LIMITS_MS[TASK])
        reader.execute("ROLLBACK")


def has_stream() -> bool:
    return bool(settings.REDIS_URL)
