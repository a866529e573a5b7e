"""Daily partitions of the usage log: made ahead, dropped after their time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta

from django.conf import settings
from django.db import connection
from django.db.models import Max
from django.utils import timezone

from accounts.models import (
    Plan,
    QuotaNotice,
    ScoreRollup,
    StoredText,
    UsageBatch,
    UsageLog,
    UsageRollup,
)

PARTITIONS_AHEAD_DAYS = 7
BATCHES_REMEMBERED = timedelta(days=1)
ROLLUPS_KEPT = {"minute": timedelta(days=2), "hour": timedelta(days=95)}


_days_known: set[date] = set()


def _partition(day: date) -> str:
    return f"{UsageLog._meta.db_table}_p{day:%Y%m%d}"


def ensure_partitions(days: Iterable[date]) -> None:
    """Make the partitions that rows of `days` (UTC) need, where the log has any."""
    missing = set(days) - _days_known
    if not missing or connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        for day in sorted(missing):
            cursor.execute("SELECT to_regclass(%s)", [_partition(day)])
            row = cursor.fetchone()
            if row and row[0] is None:
                cursor.execute(
                    f"CREATE TABLE IF NOT EXISTS {_partition(day)} "
                    f"PARTITION OF {UsageLog._meta.db_table} FOR VALUES "
                    f"FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
                )
    _days_known.update(missing)


def make_partitions_ahead() -> None:
    """So that midnight finds its partition there, without a lock in the middle of the traffic."""
    today = timezone.now().date()
    ensure_partitions(today + timedelta(days=n) for n in range(PARTITIONS_AHEAD_DAYS + 1))


def retention_days() -> int:
    """Of the installation: as set, else the longest that a plan promises."""
    longest = Plan.objects.aggregate(days=Max("log_days"))["days"] or 90
    return settings.USAGE_RETENTION_DAYS or longest


def prune() -> int:
    """Drop what is older than the retention; returns how many partitions or rows."""
    now = timezone.now()
    before = now - timedelta(days=retention_days())
    for period, kept in ROLLUPS_KEPT.items():
        for model in (UsageRollup, ScoreRollup):
            model.objects.filter(period=period, bucket__lt=now - kept).delete()
    UsageBatch.objects.filter(written_at__lt=now - BATCHES_REMEMBERED).delete()
    QuotaNotice.objects.filter(day__lt=before.date()).delete()
    StoredText.objects.filter(created_at__lt=before).delete()
    if connection.vendor != "postgresql":
        return UsageLog.objects.filter(created_at__lt=before).delete()[0]
    old = [day for day in partition_days() if day < before.date()]
    with connection.cursor() as cursor:
        for day in old:
            cursor.execute(f"DROP TABLE {_partition(day)}")
            _days_known.discard(day)
    return len(old)


def partition_days() -> list[date]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass",
            [UsageLog._meta.db_table],
        )
        names = [row[0] for row in cursor.fetchall()]
    return sorted(datetime.strptime(name[-8:], "%Y%m%d").date() for name in names)  # noqa: DTZ007
