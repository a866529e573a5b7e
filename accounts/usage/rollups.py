"""Sums per minute, hour and day, made of rows."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from operator import add
from typing import Any
from uuid import UUID

import orjson
from django.db import connection, transaction

from accounts.models import (
    ScoreRollup,
    UsageRollup,
)
from accounts.usage.rows import Row
from gateway_project.core import clock

SCORE_BINS = 100
ROLLUPS_KEPT = {"minute": timedelta(days=2), "hour": timedelta(days=95)}
"""Days are kept for `STATISTICS_RETENTION_DAYS`. Of scores there are days alone."""

LATENCY_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)
"""Upper bounds of the latency bins; the last bin holds everything above."""
LATENCY_COLUMNS = tuple(f"latency_{i:02}" for i in range(len(LATENCY_MS) + 1))
SUMS = (
    "requests",
    "flagged",
    "degraded",
    "cached",
    "request_bytes",
    "latency_ms_sum",
    *LATENCY_COLUMNS,
)
KEYS = ("period", "bucket", "subject_id", "endpoint", "http_status")
SCORE_KEYS = ("period", "bucket", "subject_id", "bin")
EVERYTHING = UUID(int=0)
"""The subject of the sums over the whole installation."""


def add_up(rows: Iterable[Row]) -> None:
    # By minute and whatever else is told apart, so that the rest has few of them instead of rows.
    groups: dict[tuple[Any, ...], list[float]] = {}
    scores: dict[tuple[Any, ...], int] = defaultdict(int)
    first_bin = len(SUMS) - len(LATENCY_COLUMNS)
    for row in rows:
        _, key, workspace, endpoint, http_status, _, size, latency_ms, _, status, *rest = row
        _, _, is_malicious, confidence, cached, at = rest
        group = (at[:16], key, workspace, endpoint, http_status)
        total = groups.get(group)
        if total is None:
            total = groups[group] = [0] * len(SUMS)
        total[0] += 1
        total[1] += bool(is_malicious)
        total[2] += status == "degraded"
        total[3] += cached
        total[4] += size
        total[5] += latency_ms
        total[first_bin + bisect_left(LATENCY_MS, latency_ms)] += 1
        if confidence is not None:
            number = bin_of(confidence)
            scores[(at[:10], key, workspace, number)] += 1
    sums: dict[tuple[Any, ...], list[float]] = {}
    for (minute, key, workspace, endpoint, http_status), total in groups.items():
        for slot in _slots(minute, key, workspace):
            place = (*slot, endpoint, http_status)
            before = sums.get(place)
            sums[place] = total if before is None else [*map(add, before, total)]
    bins: dict[tuple[Any, ...], int] = defaultdict(int)
    for (day, key, workspace, number), count in scores.items():
        _, _, bucket = _buckets(f"{day}T00:00")
        for subject in (key, workspace, str(EVERYTHING)):
            bins[(*bucket, subject, number)] += count
    _upsert(UsageRollup, KEYS, SUMS, [(*key, *total) for key, total in sums.items()])
    _upsert(ScoreRollup, SCORE_KEYS, ("count",), [(*key, count) for key, count in bins.items()])


def bin_of(score: float) -> int:
    """The hundredth that a score of 0 to 1 lies in; the last holds 1 as well."""
    return min(SCORE_BINS - 1, int(score * SCORE_BINS))


def _slots(minute: str, key: str, workspace: str) -> Iterator[tuple[str, datetime, str]]:
    """Period, bucket and subject of all sums that something of this `minute` belongs to."""
    for period, bucket in _buckets(minute):
        for subject in (key, workspace, str(EVERYTHING)):
            yield period, bucket, subject


@lru_cache(maxsize=64)
def _buckets(minute: str) -> tuple[tuple[str, datetime], ...]:
    """Of a time in UTC, cut after its minute."""
    at = datetime.fromisoformat(minute + ":00+00:00")
    hour = at.replace(minute=0)
    return ("minute", at), ("hour", hour), ("day", hour.replace(hour=0))


def _upsert(
    model: Any, keys: Sequence[str], sums: Sequence[str], rows: list[tuple[Any, ...]]
) -> None:
    if not rows:
        return
    table = model._meta.db_table
    fields = [model._meta.get_field(name) for name in (*keys, *sums)]
    insert = f"INSERT INTO {table} ({', '.join(field.column for field in fields)}) "
    add = f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET " + ", ".join(
        f"{name} = {table}.{name} + excluded.{name}" for name in sums
    )
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # One statement: for a thousand keys at once it would be six thousand. In order, so
            # that two writers take the rows' locks in the same one. Most sums are zero, and
            # reading them would be half of its cost, so those are left out.
            names = [*keys, *(f"s{n}" for n in range(len(sums)))]
            types = ", ".join(
                f"{name} {field.db_type(connection)}"
                for name, field in zip(names, fields, strict=True)
            )
            values = ", ".join([*keys, *(f"coalesce({name}, 0)" for name in names[len(keys) :])])
            records = [
                {name: x for name, x in zip(names, row, strict=True) if x or name in keys}
                for row in rows
            ]
            cursor.execute(
                f"{insert} SELECT {values} FROM json_to_recordset(%s) AS added ({types}) "  # noqa: S608
                f"ORDER BY {', '.join(keys)} {add}",
                [orjson.dumps(records).decode()],
            )
        else:
            values = f"VALUES ({', '.join(['%s'] * len(fields))})"
            adapt = [field.get_db_prep_value for field in fields]
            cursor.executemany(
                insert + values + add,
                [
                    [prepare(value, connection) for prepare, value in zip(adapt, row, strict=True)]
                    for row in rows
                ],
            )


def rebuild_rollups() -> None:
    """Count the log anew (PostgreSQL), as far back as each period is kept.

    For when rows were put there by other means. Sums of days whose rows are dropped are lost.
    """
    bins = ", ".join(
        f"count(*) FILTER (WHERE width_bucket(response_time_ms, %(bounds)s) = {i})"
        for i in range(len(LATENCY_COLUMNS))
    )
    values: dict[str, Any] = {
        # `width_bucket` has inclusive lower bounds, ours are inclusive upper ones.
        "bounds": [bound + 1e-9 for bound in LATENCY_MS],
        "bins": SCORE_BINS,
        "everything": EVERYTHING,
    }
    bucket = "date_trunc(%(period)s, created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    with transaction.atomic(), connection.cursor() as cursor:
        for period in ("minute", "hour", "day"):
            values["period"] = period
            kept = ROLLUPS_KEPT.get(period, timedelta(days=36_500))
            values["since"] = (clock.now() - kept).replace(minute=0, second=0, microsecond=0)
            for model in (UsageRollup, ScoreRollup):
                model.objects.filter(period=period).delete()
            for subject in ("api_key_id", "workspace_id", "%(everything)s::uuid"):
                cursor.execute(
                    f"INSERT INTO accounts_usagerollup ({', '.join((*KEYS, *SUMS))}) "  # noqa: S608
                    f"SELECT %(period)s, {bucket}, {subject}, endpoint, http_status, count(*), "
                    "count(*) FILTER (WHERE is_malicious), "
                    "count(*) FILTER (WHERE status = 'degraded'), count(*) FILTER (WHERE cached), "
                    f"sum(request_size), sum(response_time_ms), {bins} "
                    "FROM accounts_usagelog WHERE created_at >= %(since)s GROUP BY 2, 3, 4, 5",
                    values,
                )
                if period != "day":
                    continue  # nobody asks for scores by the hour
                cursor.execute(
                    f"INSERT INTO accounts_scorerollup ({', '.join(SCORE_KEYS)}, count) "  # noqa: S608
                    f"SELECT %(period)s, {bucket}, {subject}, "
                    "least(%(bins)s - 1, floor(confidence * %(bins)s)::int), count(*) "
                    "FROM accounts_usagelog "
                    "WHERE confidence IS NOT NULL AND created_at >= %(since)s GROUP BY 2, 3, 4",
                    values,
                )
