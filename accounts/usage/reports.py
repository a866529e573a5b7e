"""What the roll-ups say: of a key, of a workspace, of the whole installation. Reads only.

What is left of limits comes from the limiter, which alone counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any
from uuid import UUID

from django.db import connection
from django.db.models import Q, QuerySet, Sum

from accounts.authentication import policies_of
from accounts.models import ApiKey, ScoreRollup, UsageRollup
from accounts.usage.rollups import CHARGED, EVERYTHING, LATENCY_COLUMNS, LATENCY_MS, SCORE_BINS
from gateway_project.core import clock
from gateway_project.core.ratelimit import State, get_limiter

BATCHES = "/v1/detect/batch"
ERRORS = Sum("requests", filter=Q(http_status__gte=400), default=0)


def per_day(api_key_id: UUID, *, days: int = 30) -> list[dict[str, Any]]:
    """`[{date, requests, flagged, errors}]` of one key, days without requests left out.

    `errors` are answers of 400 and above; `flagged` are verdicts that were malicious.
    """
    since = clock.now() - timedelta(days=days)
    rows = UsageRollup.objects.filter(
        period="day", subject_id=api_key_id, bucket__gt=since - timedelta(days=1)
    )
    return [{"date": bucket.date(), **sums} for bucket, sums in _series(rows)]


def totals(since: datetime, until: datetime, subject_id: UUID = EVERYTHING) -> dict[str, Any]:
    """`{requests, flagged_rate, error_rate, degraded_rate, latency_ms: {p50, p95, p99}, series}`.

    Of a key, a workspace or the whole installation, over the whole buckets of [since, until):
    hours up to a fortnight, days beyond. Rates are 0..1.
    """
    period = "hour" if until - since <= timedelta(days=14) else "day"
    rows = UsageRollup.objects.filter(
        period=period, subject_id=subject_id, bucket__gte=since, bucket__lt=until
    )
    wanted = {name: Sum(name, default=0) for name in ("flagged", "degraded", *LATENCY_COLUMNS)}
    sums = rows.aggregate(total=Sum("requests", default=0), errors=ERRORS, **wanted)
    requests = sums["total"]
    counts = [sums[name] for name in LATENCY_COLUMNS]
    return {
        "requests": requests,
        "flagged_rate": sums["flagged"] / requests if requests else 0.0,
        "error_rate": sums["errors"] / requests if requests else 0.0,
        "degraded_rate": sums["degraded"] / requests if requests else 0.0,
        "latency_ms": {f"p{p}": percentile(counts, p / 100) for p in (50, 95, 99)},
        "series": [{"at": bucket, **sums} for bucket, sums in _series(rows)],
    }


def timeline(subject_id: UUID, since: datetime, period: str) -> list[dict[str, Any]]:
    """`[{at, requests, flagged, errors, failed, latency}]` of each bucket with requests, earliest
    first.

    `period` is `minute`, `hour` or `day`; `errors` are answers of 400 and above, `failed` those of
    500 and above; `latency` are the counts that `percentile` takes. Items of batches are judged
    together and have no time of their own: they count as requests, and in no latency. One query
    over the roll-ups, whatever the traffic was.
    """
    rows = UsageRollup.objects.filter(period=period, subject_id=subject_id, bucket__gte=since)
    return [{"at": at, **sums} for at, sums in _with_latency(rows, "bucket")]


def total(subject_id: UUID, since: datetime, until: datetime, period: str) -> list[dict[str, Any]]:
    """The sum of what `timeline` tells of the buckets of [since, until); empty without any."""
    rows = UsageRollup.objects.filter(
        period=period, subject_id=subject_id, bucket__gte=since, bucket__lt=until
    )
    return [sums for _, sums in _with_latency(rows, "subject_id")]


def _with_latency(rows: QuerySet[UsageRollup], by: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    alone = ~Q(endpoint__startswith=BATCHES)
    wanted = {f"sum_{name}": Sum(name, filter=alone, default=0) for name in LATENCY_COLUMNS}
    failed = Sum("requests", filter=Q(http_status__gte=500), default=0)
    for value, sums, row in _grouped(rows, by, failed=failed, **wanted):
        yield value, {**sums, "failed": row["failed"], "latency": [row[name] for name in wanted]}


def charged(
    workspace_id: UUID, since: datetime, until: datetime, period: str = "day"
) -> list[dict[str, Any]]:
    """`[{at, endpoint, requests, units, tests, flagged, engine, remembered, embedded}]` by day (or
    `minute`, `hour`) and endpoint of the whole ones of [since, until).

    `units` are those that took one of the workspace's day: what was refused before the detection
    takes none, and neither do `tests`, what test keys had judged. `engine`, `remembered` and
    `embedded` say who judged, of both.
    """
    found = UsageRollup.objects.filter(period=period, bucket__gte=since, bucket__lt=until)
    rows = found.order_by("bucket", "endpoint").values("bucket", "endpoint")
    judged = Sum("requests", filter=CHARGED, default=0)
    keys = ApiKey.objects.filter(workspace=workspace_id, is_test=True).values_list("pk", flat=True)
    tests = {
        (row["bucket"], row["endpoint"]): row["judged"]
        for row in rows.filter(subject_id__in=list(keys)).annotate(judged=judged)
    }
    sums = rows.filter(subject_id=workspace_id).annotate(
        total=Sum("requests"),
        judged=judged,
        malicious=Sum("flagged"),
        remembered=Sum("cached"),
        embedded=Sum("degraded"),
    )
    return [
        {
            "at": row["bucket"],
            "endpoint": row["endpoint"],
            "requests": row["total"],
            "units": row["judged"] - (free := tests.get((row["bucket"], row["endpoint"]), 0)),
            "tests": free,
            "flagged": row["malicious"],
            "engine": max(0, row["judged"] - row["remembered"] - row["embedded"]),
            "remembered": row["remembered"],
            "embedded": row["embedded"],
        }
        for row in sums
    ]


def by_subject(
    subject_ids: Iterable[UUID], since: datetime, period: str, *, until: datetime | None = None
) -> dict[UUID, dict[str, int]]:
    """`{requests, flagged, errors}` of each key that had any.

    Whole days are read as such, whatever the `period` of `since` is.
    """
    ids = list(subject_ids)
    parts: list[tuple[str, datetime, datetime | None]] = [(period, since, until)]
    midnight = floor(since, "day") + timedelta(days=1)
    if period == "hour" and clock.now() > midnight:
        parts = [("hour", since, midnight), ("day", midnight, until)]
    found: dict[UUID, dict[str, int]] = {}
    for name, begin, end in parts:
        for subject_id, sums in _of_each(ids, name, begin, end):
            known = found.setdefault(subject_id, {"requests": 0, "flagged": 0, "errors": 0})
            for column, value in sums.items():
                known[column] += value
    return found


# From one subject to the next by its index: for some dozens of them PostgreSQL would rather read
# all of the table, which grows with the installation.
OF_EACH = """
SELECT asked.id, sums.requests, sums.flagged, sums.errors
FROM unnest(%s::uuid[]) AS asked (id)
CROSS JOIN LATERAL (
    SELECT sum(requests) AS requests, sum(flagged) AS flagged,
        coalesce(sum(requests) FILTER (WHERE http_status >= 400), 0) AS errors
    FROM accounts_usagerollup
    WHERE period = %s AND subject_id = asked.id AND bucket >= %s
        AND (%s::timestamptz IS NULL OR bucket < %s)
    OFFSET 0
) AS sums
WHERE sums.requests IS NOT NULL
"""


def _of_each(
    ids: list[UUID], period: str, since: datetime, until: datetime | None
) -> Iterator[tuple[UUID, dict[str, int]]]:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(OF_EACH, [ids, period, since, until, until])
            for subject_id, *sums in cursor.fetchall():
                yield (
                    subject_id,
                    dict(zip(("requests", "flagged", "errors"), map(int, sums), strict=True)),
                )
        return
    rows = UsageRollup.objects.filter(period=period, subject_id__in=ids, bucket__gte=since)
    if until is not None:
        rows = rows.filter(bucket__lt=until)
    for subject_id, sums, _ in _grouped(rows, "subject_id"):
        yield subject_id, sums


def floor(at: datetime, period: str) -> datetime:
    """The beginning of the minute, hour or day that `at` lies in."""
    start = at.replace(second=0, microsecond=0)
    if period == "minute":
        return start
    return start.replace(minute=0) if period == "hour" else start.replace(minute=0, hour=0)


def has_usage(subject_id: UUID) -> bool:
    """Whether a key or workspace ever had a call."""
    return UsageRollup.objects.filter(period="day", subject_id=subject_id).exists()


def limits_left(keys: Sequence[ApiKey]) -> list[dict[str, State]]:
    """What is left to each key: by the names of its policies; empty without limits.

    One trip to the limiter for all of them, and nothing is taken. Reads `key.workspace.plan`.
    """
    policies = [policies_of(key) for key in keys]
    asked = [policy for of_key in policies for policy in of_key]
    if not asked:
        return [{} for _ in keys]
    states = iter(get_limiter().check_sync(asked, [0] * len(asked)).states)
    return [{policy.name: next(states) for policy in of_key} for of_key in policies]


def _series(rows: QuerySet[UsageRollup]) -> Iterator[tuple[datetime, dict[str, int]]]:
    """`{requests, flagged, errors}` of each bucket, the earliest first."""
    for bucket, sums, _ in _grouped(rows, "bucket"):
        yield bucket, sums


def _grouped(
    rows: QuerySet[UsageRollup], by: str, **more: Sum
) -> Iterator[tuple[Any, dict[str, int], dict[str, Any]]]:
    """(value of `by`, `{requests, flagged, errors}`, the whole row) of each group, in order."""
    found: Iterable[Any] = (
        rows.values(by)
        .annotate(total=Sum("requests"), malicious=Sum("flagged"), errors=ERRORS, **more)
        .order_by(by)
    )
    for row in found:
        sums = {"requests": row["total"], "flagged": row["malicious"], "errors": row["errors"]}
        yield row[by], sums, row


def scores(subject_ids: Iterable[UUID], since: datetime) -> list[int]:
    """How many verdicts of keys, workspaces or `rollups.subject_of` had a score in each hundredth,
    from 0 up."""
    rows = (
        ScoreRollup.objects.filter(period="day", subject_id__in=subject_ids, bucket__gte=since)
        .values("bin")
        .annotate(total=Sum("count"))
    )
    found = {row["bin"]: row["total"] for row in rows}
    return [found.get(number, 0) for number in range(SCORE_BINS)]


def percentile(counts: Sequence[int], share: float) -> float | None:
    """The latency in ms that `share` of requests stay within, from the bins; None without any.

    Within a bin it is taken to grow evenly; above the last bound it is that bound.
    """
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    for index, reached in enumerate(accumulate(counts)):
        if reached >= rank and counts[index]:
            if index == len(LATENCY_MS):
                break
            low = LATENCY_MS[index - 1] if index else 0
            inside = (rank - (reached - counts[index])) / counts[index]
            return round(low + (LATENCY_MS[index] - low) * inside, 2)
    return float(LATENCY_MS[-1])
