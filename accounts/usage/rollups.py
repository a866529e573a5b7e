"""Sums per minute, hour and day, made of rows.

A sum is a row that is added to, so what adding costs goes by how many sums rows are in: a dozen for
each key among them. While a drain meets many keys, its rows are therefore put aside as they are
(`UnsummedUsage`), and summed a little later, many at once, by one statement for a share of the
keys. Nothing is lost in between: they are put aside in the transaction that writes the log, and go
in the one that adds them up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from hashlib import md5
from operator import add, itemgetter
from typing import Any
from uuid import UUID

import orjson
from django.db import DatabaseError, connection, transaction
from django.db.models import Count, Max, Q
from django.db.models.functions import TruncDate

from accounts.models import ScoreRollup, UnsummedUsage, UsageRollup
from accounts.usage.rows import COLUMNS, Row
from gateway_project.core import clock
from gateway_project.core.stores.bulk import copy_in
from gateway_project.core.stores.refused import each_alone, is_refused

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
CHARGED = Q(http_status__lt=400) | Q(http_status__gte=499)
"""Requests that took one of the day: what is refused before the detection takes none."""
ASIDE_KEYS_MIN = 200
"""Of fewer keys rows are added up at once."""
PARTS = 32
"""Shares of keys, by the last byte of their ids."""
PART_ROWS = 5_000
"""So many are added up by a statement, and no key by two: a part of a second."""
ASIDE = UnsummedUsage._meta.db_table
ASIDE_COLUMNS = (
    *("created_at", "api_key_id", "workspace_id", "endpoint", "http_status", "status"),
    *("is_malicious", "cached", "request_size", "response_time_ms", "confidence"),
)
USAGE, SCORES = UsageRollup._meta.db_table, ScoreRollup._meta.db_table
# `width_bucket` has inclusive lower bounds, ours are inclusive upper ones.
BOUNDS = [bound + 1e-9 for bound in LATENCY_MS]
BIN = "least(%(bins)s - 1, floor(greatest(0, least(confidence, 1)) * %(bins)s)::int)"
ADDED = ", ".join(
    f"{what} AS {name}"
    for name, what in {
        "requests": "count(*)",
        "flagged": "count(*) FILTER (WHERE is_malicious)",
        "degraded": "count(*) FILTER (WHERE status = 'degraded')",
        "cached": "count(*) FILTER (WHERE cached)",
        "request_bytes": "sum(request_size)",
        "latency_ms_sum": "sum(response_time_ms)",
        **{
            name: f"count(*) FILTER (WHERE latency_bin = {number})"
            for number, name in enumerate(LATENCY_COLUMNS)
        },
    }.items()
)
"""SQL: the sums of rows, in the order of `SUMS`, where each has its `latency_bin`."""


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


def subject_of(api_key_id: UUID | str, content_type: str) -> UUID:
    """Of the scores that a key's texts of one type had; of users' texts no such sums are kept: they
    are what the others leave of all of the key's."""
    return UUID(md5(f"{api_key_id}:{content_type}".encode(), usedforsecurity=False).hexdigest())


def add_up_types(rows: Iterable[tuple[Row, str]]) -> None:
    """Scores by the type of the text, of rows that say one. After `add_up`, as every writer does:
    so none waits for the other's locks in turn."""
    bins: dict[tuple[Any, ...], int] = defaultdict(int)
    for row, content_type in rows:
        confidence = row[COLUMNS.index("confidence")]
        if confidence is not None:
            _, _, bucket = _buckets(f"{row[-1][:10]}T00:00")
            bins[(*bucket, str(subject_of(row[1], content_type)), bin_of(confidence))] += 1
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


def _added_to(table: str, keys: Sequence[str], sums: Sequence[str]) -> str:
    """The end of an INSERT of sums: what is there already is added to."""
    return f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET " + ", ".join(
        f"{name} = {table}.{name} + excluded.{name}" for name in sums
    )


def _upsert(
    model: Any, keys: Sequence[str], sums: Sequence[str], rows: list[tuple[Any, ...]]
) -> None:
    if not rows:
        return
    table = model._meta.db_table
    fields = [model._meta.get_field(name) for name in (*keys, *sums)]
    insert = f"INSERT INTO {table} ({', '.join(field.column for field in fields)}) "
    add = _added_to(table, keys, sums)
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


def put_aside(rows: Sequence[Row]) -> bool:
    """Leave these rows to `add_up_aside`, if they are of so many keys that it pays."""
    if connection.vendor != "postgresql" or len(rows) < ASIDE_KEYS_MIN:
        return False
    key = COLUMNS.index("api_key_id")
    if len({row[key] for row in rows}) < ASIDE_KEYS_MIN:
        return False
    places = [COLUMNS.index(name) for name in ASIDE_COLUMNS]
    chosen = itemgetter(*places)
    copy_in(
        ASIDE,
        ("part", *ASIDE_COLUMNS),
        ((int(row[key][-2:], 16) % PARTS, *chosen(row)) for row in rows),
    )
    return True


def add_up_aside() -> int:
    """Add up what was put aside, a share of the keys at a time; returns how many rows.

    Each share is a transaction of its own. A row that cannot be added up, as no row of the log is
    (`log.MILLISECONDS_MAX`), keeps back its share and no other; then this raises.
    """
    if connection.vendor != "postgresql":
        return 0
    return sum(each_alone(_shares(), _add_up_share))


def _shares() -> Iterator[list[int]]:
    """Parts that wait, as many together as have `PART_ROWS`."""
    waiting = UnsummedUsage.objects.order_by("part").values_list("part").annotate(n=Count("pk"))
    parts, size = list[int](), 0
    for part, count in waiting:
        if parts and size + count > PART_ROWS:
            yield parts
            parts, size = [], 0
        parts.append(part)
        size += count
    if parts:
        yield parts


def _add_up_share(parts: list[int]) -> int:
    try:
        return _add_up_parts(parts)
    except DatabaseError as exc:
        if len(parts) == 1 or not is_refused(exc):
            raise
    return sum(each_alone([[part] for part in parts], _add_up_parts))


def requests_aside(condition: Q, subjects: Iterable[Any]) -> list[tuple[UUID, date, int]]:
    """How many requests of a key and day are in no sum yet, of those that fit the condition."""
    if connection.vendor != "postgresql":
        return []
    rows = UnsummedUsage.objects.filter(condition, api_key_id__in=list(subjects))
    return list(
        rows.annotate(day=TruncDate("created_at", tzinfo=UTC))
        .values_list("api_key_id", "day")
        .annotate(n=Count("pk"))
        .order_by()
    )


def latest_aside(subject_id: UUID, since: datetime, condition: Q) -> datetime | None:
    """When the latest row of a key or workspace came that is in no sum yet, and fits."""
    if connection.vendor != "postgresql":
        return None
    of_subject = Q(api_key_id=subject_id) | Q(workspace_id=subject_id)
    rows = UnsummedUsage.objects.filter(of_subject, condition, created_at__gte=since)
    return rows.aggregate(latest=Max("created_at"))["latest"]  # type: ignore[no-any-return]


def _add_up_parts(parts: list[int]) -> int:
    """In the order of their keys, as every writer of sums takes their locks."""
    usage, scores = ", ".join((*KEYS, *SUMS)), ", ".join((*SCORE_KEYS, "count"))
    subjects = "(VALUES (api_key_id), (workspace_id), (%(everything)s::uuid)) AS s (subject_id)"
    statement = f"""
WITH taken AS (
    DELETE FROM {ASIDE} WHERE part = ANY(%(parts)s) RETURNING *,
        date_trunc('minute', created_at AT TIME ZONE 'UTC') AS minute,
        width_bucket(response_time_ms, %(bounds)s) AS latency_bin
), minutes AS (
    SELECT minute, api_key_id, workspace_id, endpoint, http_status, {ADDED}
    FROM taken GROUP BY 1, 2, 3, 4, 5
), slots AS (
    SELECT period, date_trunc(period, minute) AT TIME ZONE 'UTC' AS bucket, subject_id,
        endpoint, http_status, {", ".join(f"sum({name}) AS {name}" for name in SUMS)}
    FROM minutes, (VALUES ('minute'), ('hour'), ('day')) AS p (period), LATERAL {subjects}
    GROUP BY 1, 2, 3, 4, 5
), bins AS (
    SELECT 'day' AS period, date_trunc('day', minute) AT TIME ZONE 'UTC' AS bucket, subject_id,
        {BIN} AS bin, count(*) AS count
    FROM taken, LATERAL {subjects} WHERE confidence IS NOT NULL GROUP BY 1, 2, 3, 4
), usage AS (
    INSERT INTO {USAGE} ({usage}) SELECT {usage} FROM slots
    ORDER BY {", ".join(KEYS)} {_added_to(USAGE, KEYS, SUMS)}
), score AS (
    INSERT INTO {SCORES} ({scores}) SELECT {scores} FROM bins
    ORDER BY {", ".join(SCORE_KEYS)} {_added_to(SCORES, SCORE_KEYS, ("count",))}
)
SELECT count(*) FROM taken
"""  # noqa: S608
    values: dict[str, Any] = {"parts": parts, "bounds": BOUNDS, "bins": SCORE_BINS}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL jit = off")  # compiling it takes longer than running it
        cursor.execute(statement, {**values, "everything": EVERYTHING})
        row = cursor.fetchone()
    return int(row[0])


def rebuild_rollups() -> None:
    """Count the log anew (PostgreSQL), as far back as each period is kept.

    For when rows were put there by other means. Sums of days whose rows are dropped are lost.
    """
    values: dict[str, Any] = {"bounds": BOUNDS, "bins": SCORE_BINS, "everything": EVERYTHING}
    bucket = "date_trunc(%(period)s, created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"DELETE FROM {ASIDE}")  # noqa: S608 - they are counted from the log
        for period in ("minute", "hour", "day"):
            values["period"] = period
            kept = ROLLUPS_KEPT.get(period, timedelta(days=36_500))
            values["since"] = (clock.now() - kept).replace(minute=0, second=0, microsecond=0)
            for model in (UsageRollup, ScoreRollup):
                model.objects.filter(period=period).delete()
            for subject in ("api_key_id", "workspace_id", "%(everything)s::uuid"):
                cursor.execute(
                    f"INSERT INTO accounts_usagerollup ({', '.join((*KEYS, *SUMS))}) "  # noqa: S608
                    f"SELECT %(period)s, {bucket}, {subject}, endpoint, http_status, {ADDED} "
                    "FROM (SELECT *, width_bucket(response_time_ms, %(bounds)s) AS latency_bin "
                    "FROM accounts_usagelog WHERE created_at >= %(since)s) AS log "
                    "GROUP BY 2, 3, 4, 5",
                    values,
                )
        # Nobody asks for scores by the hour: the period is the day now.
        of_type = "CASE WHEN why ? 'type' THEN md5(concat(api_key_id, ':', why->>'type'))::uuid END"
        for subject in ("api_key_id", "workspace_id", "%(everything)s::uuid", of_type):
            cursor.execute(
                f"INSERT INTO accounts_scorerollup ({', '.join(SCORE_KEYS)}, count) "  # noqa: S608
                f"SELECT %(period)s, {bucket}, {subject}, {BIN}, count(*) FROM accounts_usagelog "
                f"WHERE confidence IS NOT NULL AND created_at >= %(since)s "
                f"AND {subject} IS NOT NULL GROUP BY 2, 3, 4",
                values,
            )
