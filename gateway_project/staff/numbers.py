"""The state of the installation in numbers. All of it is read from roll-ups and small indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast
from uuid import UUID

from django.conf import settings
from django.core.cache import cache
from django.db.models import Count, Min, Q
from django.utils.translation import gettext
from django_redis.exceptions import ConnectionInterrupted
from redis.exceptions import RedisError

from accounts.models import ApiKey, Membership, UsageRollup, Workspace
from accounts.tasks import HEARTBEAT_KEY, HEARTBEAT_SECONDS
from accounts.usage import reports
from accounts.usage.rollups import EVERYTHING, LATENCY_COLUMNS
from accounts.usage.stream import STREAM
from detection.jobs import store
from gateway_project.core import clock
from gateway_project.core.stores import redis
from gateway_project.core.upstream import breaker
from portal import figures
from webhooks.delivery import outbox
from webhooks.models import WebhookDelivery, WebhookNotice

T = TypeVar("T")
HOURS_UP_TO = timedelta(days=14)
"""Longer ranges are read by day (`reports.totals`)."""
DASHBOARD_HOURS = 24
COUNTED_SECONDS = 60


def period_of(since: datetime, until: datetime) -> str:
    return "hour" if until - since <= HOURS_UP_TO else "day"


# -- /admin/stats ---------------------------------------------------------------------------------


def stats(since: datetime, until: datetime) -> dict[str, Any]:
    """Of the whole installation in [since, until), in the shape of `schemas.Stats`.

    `since` counts from the beginning of its hour (its day beyond a fortnight). Keys in use,
    webhooks that wait, jobs and breakers are of this moment, whatever the range.
    """
    period = period_of(since, until)
    return {
        **reports.totals(reports.floor(since, period), until),
        "active_keys": active_keys(),
        "new_workspaces": Workspace.objects.filter(
            created_at__gte=since, created_at__lt=until
        ).count(),
        "webhooks": {
            "delivered_rate": delivered_rate(since, until),
            "oldest_pending_seconds": round(outbox.oldest_pending_seconds(), 1),
        },
        "jobs": store.backlog()._asdict(),
        "breakers": {
            name: {"open_for_seconds": None, **report}
            for name, report in breaker.ask_everywhere().worst().items()
        },
    }


def active_keys() -> dict[str, int]:
    """Keys used within the last day, week and month; without the playground's.

    Counted once in `COUNTED_SECONDS`: an index on `last_used_at` would cost each use of a key more
    than it spares here.
    """
    return _remembered("staff:active-keys", _active_keys)


def _active_keys() -> dict[str, int]:
    now = clock.now()
    days = {name: now - timedelta(days=n) for name, n in (("d1", 1), ("d7", 7), ("d30", 30))}
    counts = {name: Count("pk", filter=Q(last_used_at__gte=at)) for name, at in days.items()}
    return ApiKey.objects.listed().filter(last_used_at__gte=days["d30"]).aggregate(**counts)


def delivered_rate(since: datetime, until: datetime) -> float | None:
    """Of the deliveries begun in the range and ended since: 0..1, None when there are none.

    Counted once in `COUNTED_SECONDS` for ranges that begin and end in the same minutes.
    """
    name = f"staff:delivered:{since:%Y%m%d%H%M}:{until:%Y%m%d%H%M}"
    (found,) = _remembered(name, lambda: (_delivered_rate(since, until),))
    return found


def _remembered(name: str, count: Callable[[], T]) -> T:
    try:
        return cast(T, cache.get_or_set(name, count, COUNTED_SECONDS))
    except (RedisError, ConnectionInterrupted):
        return count()


def _delivered_rate(since: datetime, until: datetime) -> float | None:
    counts = WebhookDelivery.objects.filter(
        # Ids are UUIDv7: a range of them is a range of time, and has an index.
        pk__gte=_first_id(since),
        pk__lt=_first_id(until),
        is_test=False,
    ).aggregate(
        delivered=Count("pk", filter=Q(status=WebhookDelivery.Status.DELIVERED)),
        failed=Count("pk", filter=Q(status=WebhookDelivery.Status.FAILED)),
    )
    ended = counts["delivered"] + counts["failed"]
    return counts["delivered"] / ended if ended else None


def _first_id(at: datetime) -> UUID:
    """No UUIDv7 of that millisecond, or a later one, is smaller (RFC 9562 §5.7)."""
    return UUID(int=max(0, int(at.timestamp() * 1000)) << 80)


# -- /admin/users ---------------------------------------------------------------------------------


def belongings(user_ids: Iterable[UUID]) -> dict[UUID, dict[str, int]]:
    """`{workspaces, keys, requests_30d}` of each user: of all workspaces they are in.

    Three queries, however many users. `keys` are those in use.
    """
    members = list(
        Membership.objects.filter(user__in=list(user_ids)).values_list("user_id", "workspace_id")
    )
    workspaces = {workspace for _, workspace in members}
    key_counts = ApiKey.objects.in_use(workspaces)
    month = clock.now() - timedelta(days=30)
    usage = reports.by_subject(workspaces, month, "day") if workspaces else {}
    found: dict[UUID, dict[str, int]] = {}
    for user, workspace in members:
        mine = found.setdefault(user, {"workspaces": 0, "keys": 0, "requests_30d": 0})
        mine["workspaces"] += 1
        mine["keys"] += key_counts.get(workspace, 0)
        mine["requests_30d"] += usage.get(workspace, {}).get("requests", 0)
    return found


# -- /admin/usage/{api_key_id} --------------------------------------------------------------------

SUMS = ("requests", "flagged", "errors", "degraded", "cached", "request_bytes")


def usage_of(subject_id: UUID, since: datetime, until: datetime, period: str) -> dict[str, Any]:
    """Of one key in the buckets of [since, until): `totals`, `series`, `by_endpoint`, `by_status`.

    One query: the roll-up's rows are few, and everything else is adding them up.
    """
    rows = UsageRollup.objects.filter(
        period=period,
        subject_id=subject_id,
        bucket__gte=reports.floor(since, period),
        bucket__lt=until,
    )
    totals = dict.fromkeys(SUMS, 0)
    latency = [0] * len(LATENCY_COLUMNS)
    groups: dict[str, dict[Any, dict[str, int]]] = {"at": {}, "endpoint": {}, "status": {}}
    columns = ("bucket", "endpoint", "http_status", *SUMS, *LATENCY_COLUMNS)
    for row in rows.order_by("bucket").values(*(name for name in columns if name != "errors")):
        failed = row["requests"] if row["http_status"] >= 400 else 0
        sums = {name: row.get(name, failed) for name in SUMS}
        _add(totals, sums)
        latency = [n + row[c] for n, c in zip(latency, LATENCY_COLUMNS, strict=True)]
        names = {"at": row["bucket"], "endpoint": row["endpoint"], "status": row["http_status"]}
        for group, name in names.items():
            _add(groups[group].setdefault(name, dict.fromkeys(SUMS, 0)), sums)
    return {
        "totals": {
            **totals,
            "latency_ms": {f"p{p}": reports.percentile(latency, p / 100) for p in (50, 95, 99)},
        },
        "series": [{"at": at, **sums} for at, sums in groups["at"].items()],
        "by_endpoint": [{"endpoint": e, **sums} for e, sums in sorted(groups["endpoint"].items())],
        "by_status": [{"status": s, **sums} for s, sums in sorted(groups["status"].items())],
    }


def _add(totals: dict[str, int], more: dict[str, int]) -> None:
    for name, value in more.items():
        totals[name] += value


# -- The admin's first page -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits, and since how many seconds its oldest; None when nothing does."""

    what: str
    seconds: float | None
    count: int | None = None


def dashboard() -> dict[str, Any]:
    """The last 24 hours, by the hour, and the state of this moment."""
    now = clock.now()
    first = reports.floor(now, "hour") - timedelta(hours=DASHBOARD_HOURS - 1)
    everywhere = breaker.ask_everywhere()
    return {
        **figures.since(EVERYTHING, first, "hour"),
        "everywhere": everywhere,
        "breakers": everywhere.worst(),
        "worker": worker(),
        "waiting": list(waiting()),
    }


def worker() -> dict[str, Any]:
    """`{is_up, seconds}`: how long ago the worker last gave a sign of life (None: never)."""
    seen = cache.get(HEARTBEAT_KEY)
    seconds = None if seen is None else max(0.0, clock.time() - seen)
    return {"is_up": seconds is not None and seconds < 3 * HEARTBEAT_SECONDS, "seconds": seconds}


def waiting() -> Iterable[Waiting]:
    seconds = outbox.oldest_pending_seconds()
    yield Waiting(gettext("Events and deliveries to webhooks that are due"), seconds or None)
    oldest = WebhookNotice.objects.filter(sent_at=None).aggregate(at=Min("created_at"))["at"]
    age = (clock.now() - oldest).total_seconds() if oldest else None
    yield Waiting(gettext("Mails about failing webhooks"), age)
    if settings.REDIS_URL:
        try:
            client = redis.client()
            first = client.xrange(STREAM, count=1)
            began = int(first[0][0].partition(b"-")[0]) / 1000 if first else None
            age = None if began is None else max(0.0, clock.time() - began)
            yield Waiting(gettext("Usage not written yet (batches)"), age, client.xlen(STREAM))
        except (RedisError, OSError):
            yield Waiting(gettext("Usage not written yet: Redis is away"), None)
