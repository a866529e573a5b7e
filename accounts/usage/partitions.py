"""Daily partitions of the usage log: made ahead, dropped after their time.

Neither waits for whoever reads the log, nor lets anybody wait: a partition is made beside the table
and attached, and detached before it is dropped, both without a lock that keeps readers or writers
out. What cannot be had within `LOCK_SECONDS` is left to the next round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from threading import Timer

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import Max

from accounts.models import Plan, UsageLog
from gateway_project.core import clock
from gateway_project.core.stores import advisory
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger

PARTITIONS_AHEAD_DAYS = 7
LOCK_SECONDS = 2
TABLE = UsageLog._meta.db_table
NAME = re.compile(rf"{TABLE}_p([0-9]{{8}})\Z")
log = get_logger("gateway.usage")


_days_known: set[date] = set()


def _partition(day: date) -> str:
    return f"{TABLE}_p{day:%Y%m%d}"


def ensure_partitions(days: Iterable[date]) -> None:
    """Make the partitions that rows of `days` (UTC) need, where the log has any."""
    missing = set(days) - _days_known
    if not missing or connection.vendor != "postgresql":
        return
    for day in sorted(missing - set(partition_days())):
        _make(day)
    _days_known.update(missing)


def _make(day: date) -> None:
    name, following = _partition(day), day + timedelta(days=1)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        # One at a time; whoever comes second finds it made.
        advisory.hold("usage.partitions")
        if day in partition_days():
            return
        # `CREATE … PARTITION OF` would lock the whole log, and wait for all that reads it.
        cursor.execute(f"CREATE TABLE IF NOT EXISTS {name} (LIKE {TABLE} INCLUDING ALL)")
        # So that pages need not read rows to know how far back they look.
        cursor.execute(f"ALTER TABLE {name} SET (autovacuum_vacuum_insert_scale_factor = 0.05)")
        cursor.execute(
            f"ALTER TABLE {TABLE} ATTACH PARTITION {name} "
            f"FOR VALUES FROM ('{day} 00:00+00') TO ('{following} 00:00+00')"
        )


def make_partitions_ahead() -> None:
    """So that midnight finds its partition there, whatever the database is doing then."""
    today = clock.now().date()
    ensure_partitions(today + timedelta(days=n) for n in range(PARTITIONS_AHEAD_DAYS + 1))


def retention_days() -> int:
    """Of the installation: as set, else the longest that a plan promises."""
    longest = Plan.objects.aggregate(days=Max("log_days"))["days"] or 90
    return settings.USAGE_RETENTION_DAYS or longest


def prune() -> int:
    """Drop what is older than the retention; returns how many partitions or rows."""
    during = Round()
    before = clock.now() - timedelta(days=retention_days())
    if connection.vendor != "postgresql":
        return during.delete(UsageLog.objects.filter(created_at__lt=before).order_by("created_at"))
    dropped = 0
    for day, is_attached in sorted(_tables().items()):
        if day >= before.date() or during.is_over:
            break
        try:
            _drop(day, is_attached=is_attached)
        except OperationalError as exc:  # somebody reads it, a dump perhaps
            log.info("partition_kept", partition=_partition(day), error=type(exc).__name__)
            break
        _days_known.discard(day)
        dropped += 1
    return dropped


def _drop(day: date, *, is_attached: bool) -> None:
    if is_attached:
        how = "FINALIZE" if _is_detaching(day) else "CONCURRENTLY"
        with _cancelled_when_late(), connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {TABLE} DETACH PARTITION {_partition(day)} {how}")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
        cursor.execute(f"DROP TABLE {_partition(day)}")


@contextmanager
def _cancelled_when_late() -> Iterator[None]:
    """For a statement outside of any transaction, which `CONCURRENTLY` demands.

    A time-out that is set there is another client's, too, behind a pooler.
    """
    connection.ensure_connection()
    timer = Timer(LOCK_SECONDS, connection.connection.cancel_safe)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # what follows is not to be cancelled


def _is_detaching(day: date) -> bool:
    """Whether a round before this one began to detach it, and had to stop waiting."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = %s::regclass",
            [_partition(day)],
        )
        row = cursor.fetchone()
    return bool(row and row[0])


def partition_days() -> list[date]:
    """Of the partitions that the log has."""
    return sorted(day for day, is_attached in _tables().items() if is_attached)


def _tables() -> dict[date, bool]:
    """Tables for days by name, and whether each is a partition (still)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, relispartition FROM pg_class "
            "WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace "
            "AND relname ~ %s",
            [f"^{TABLE}_p[0-9]{{8}}$"],
        )
        rows = cursor.fetchall()
    return {_day(name): is_attached for name, is_attached in rows}


def _day(name: str) -> date:
    return datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC).date()
