"""The business in numbers, and the queue of what deserves a look. Read from sums and indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import Any, NamedTuple, TypeVar, cast

from django.core.cache import cache
from django.db import connection
from django.db.models import Count, Q, Sum
from django.db.models.functions import TruncDate
from django.utils.translation import gettext
from django_redis.exceptions import ConnectionInterrupted
from redis.exceptions import RedisError

from accounts.models import ApiKey, UsageRollup, Workspace
from accounts.usage import reports
from accounts.usage.rollups import EVERYTHING
from detection.models import Feedback
from gateway_project.core import clock
from gateway_project.core.language import dated, number, spoken
from gateway_project.core.upstream import breaker
from gateway_project.staff import numbers
from webhooks.models import Webhook

T = TypeVar("T")
REMEMBERED_SECONDS = 60
NEW_MAX = 500
LISTED_MAX = 10
LOOKED_AT_MAX = 500
NEAR = 0.8
"""Of the day's quota."""
BURST = 20
"""Times of its own usual day at which a workspace is worth a look."""
BURST_MIN = 1_000


class Line(NamedTuple):
    """A workspace that is worth a look, and why."""

    workspace: Workspace
    why: str


def board() -> dict[str, Any]:
    """What a minute ago was the state is good enough: several queries look at all workspaces."""
    return _remembered(f"staff:board:{spoken()}", _board)


def _remembered(name: str, make: Callable[[], T]) -> T:
    try:
        found = cache.get_or_set(name, make, REMEMBERED_SECONDS)
    except (RedisError, ConnectionInterrupted):
        return make()
    return cast(T, found)


def _board() -> dict[str, Any]:
    now = clock.now()
    today = reports.floor(now, "day")
    month = today - timedelta(days=29)
    new = Workspace.objects.filter(created_at__gte=month)
    newest = list(new.order_by("-created_at").values_list("pk", flat=True)[:NEW_MAX])
    busiest = _busiest(today)
    totals = reports.totals(month, now, EVERYTHING)
    wrong = Feedback.objects.filter(created_at__gte=month).values_list("verdict")
    return {
        "days": list(_sign_ups(month)),
        "new": new.count(),
        "begun": len(reports.by_subject(newest, month, "day")),
        "begun_of": len(newest),
        "active": _active(now),
        "totals": totals,
        "flagged": number(totals["flagged_rate"], ".1%"),
        "errors": number(totals["error_rate"], ".1%"),
        "feedback": dict(wrong.order_by().annotate(count=Count("pk"))),
        "near": list(_near_limits(busiest))[:LISTED_MAX],
        "failing": list(_failing_webhooks()),
        "review": list(_review(busiest, today))[:LISTED_MAX],
        "breakers": breaker.ask_everywhere().worst(),
        "waiting": list(numbers.waiting()),
        "worker": numbers.worker(),
        "bytes": _storage(),
    }


def _sign_ups(since: datetime) -> Iterator[tuple[date, int]]:
    found = dict(
        Workspace.objects.filter(created_at__gte=since)
        .order_by()
        .annotate(day=TruncDate("created_at"))
        .values_list("day")
        .annotate(count=Count("pk"))
    )
    for n in range(30):
        day = (since + timedelta(days=n)).date()
        yield day, found.get(day, 0)


def _active(now: datetime) -> dict[str, int]:
    """Workspaces with a key that was used in the last day, week and month."""
    since = {name: now - timedelta(days=n) for name, n in (("d1", 1), ("d7", 7), ("d30", 30))}
    counts = {
        name: Count("workspace", distinct=True, filter=Q(last_used_at__gte=at))
        for name, at in since.items()
    }
    return ApiKey.objects.filter(last_used_at__gte=since["d30"]).aggregate(**counts)


def _busiest(today: datetime) -> list[tuple[Workspace, int]]:
    """Workspaces by what they asked today, the busiest first."""
    rows = UsageRollup.objects.filter(period="day", bucket=today).order_by()
    sums = rows.values_list("subject_id").annotate(total=Sum("requests")).order_by("-total")
    totals = dict(sums[:LOOKED_AT_MAX])  # of keys as well, and of everything
    found = Workspace.objects.select_related("plan").in_bulk(totals)
    return [(found[pk], total) for pk, total in totals.items() if pk in found]


def _near_limits(busiest: list[tuple[Workspace, int]]) -> Iterator[Line]:
    for workspace, requests in busiest:
        share = requests / workspace.day_quota
        if share >= NEAR:
            facts = {"share": number(share, ".0%"), "quota": number(workspace.day_quota)}
            yield Line(workspace, gettext("%(share)s of %(quota)s a day") % facts)


def _failing_webhooks() -> Iterator[Line]:
    failing = Webhook.objects.filter(failing_since__isnull=False, deleted_at=None)
    for hook in failing.select_related("workspace").order_by("failing_since")[:LISTED_MAX]:
        facts = {"url": hook.url, "at": dated(cast(datetime, hook.failing_since))}
        yield Line(hook.workspace, gettext("%(url)s since %(at)s UTC") % facts)


def _review(busiest: list[tuple[Workspace, int]], today: datetime) -> Iterator[Line]:
    """What is new and busy, what grew at once, and what asks about little but attacks."""
    week = today - timedelta(days=7)
    before = reports.by_subject([one.pk for one, _ in busiest], week, "day")
    for workspace, requests in busiest:
        sums = before.get(workspace.pk) or {"requests": requests, "flagged": 0, "errors": 0}
        usual = max(0, sums["requests"] - requests) / 7
        if workspace.suspended_at is not None or requests < BURST_MIN:
            continue
        if workspace.created_at >= week:
            reason = gettext("new, %(requests)s requests today")
        elif requests > BURST * max(usual, 1.0):
            reason = gettext("%(requests)s requests today, usually %(usual)s")
        elif sums["flagged"] > 0.5 * sums["requests"]:
            reason = gettext("%(flagged)s of a week flagged")
        elif sums["errors"] > 0.5 * sums["requests"]:
            reason = gettext("%(errors)s of a week refused")
        else:
            continue
        facts = {
            "requests": number(requests),
            "usual": number(usual, ",.0f"),
            "flagged": number(sums["flagged"] / sums["requests"], ".0%"),
            "errors": number(sums["errors"] / sums["requests"], ".0%"),
        }
        yield Line(workspace, reason % facts)


def _storage() -> int | None:
    """Bytes of the database; None where it does not say."""
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        (size,) = cursor.fetchone()
    return int(size)
