"""The queue over time: from the samples that the gateway takes each minute, as Robin keeps none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.http import HttpRequest, HttpResponseBase
from django.utils.translation import gettext, gettext_noop

from accounts.usage import reports
from gateway_project.core import clock
from gateway_project.core.api.methods import require_safe
from portal import plots
from portal.mail.entry import Operator, mail_page, show_or_file
from robin.metrics import sampling
from robin.permissions import Permission
from robin.queue import alarms

RANGES = {
    "1h": (gettext_noop("1 hour"), timedelta(hours=1), "minute"),
    "24h": (gettext_noop("24 hours"), timedelta(hours=24), "hour"),
    "7d": (gettext_noop("7 days"), timedelta(days=7), "hour"),
    "30d": (gettext_noop("30 days"), timedelta(days=30), "day"),
}


@mail_page(Permission.VIEW_METRICS)
@require_safe
def charts(request: HttpRequest, operator: Operator) -> HttpResponseBase:
    chosen = request.GET.get("range", "24h")
    if chosen not in RANGES:
        chosen = "24h"
    _, length, period = RANGES[chosen]
    now = clock.now()
    first = reports.floor(now - length, period)
    rows = sampling.between(first, now)
    drawn = plots_of(rows, plots.buckets(first, now, period), period)
    facts: dict[str, Any] = {
        "at": "charts",
        "ranges": [(name, gettext(label)) for name, (label, _, _) in RANGES.items()],
        "chosen": chosen,
        "plots": drawn,
        "last": rows[-1][0] if rows else None,
    }
    return show_or_file(request, operator, "charts", plots.files(*drawn), **facts)


Rows = Sequence[tuple[datetime, dict[str, float]]]


def plots_of(rows: Rows, times: Sequence[datetime], period: str) -> list[plots.Plot]:
    """What was is shown as the most of a bucket, what came or went as its sum."""
    counted = sampling.with_delivered(rows)
    waiting = _most(sampling.points(counted, "queue_size"), period)
    dead = _most([(at, row.get("dead", row.get("dead_items", 0.0))) for at, row in counted], period)
    accepted = _sums(sampling.points(counted, "accepted", is_counter=True), period)
    left = _sums(sampling.points(counted, "delivered", is_counter=True), period)
    died = _sums(sampling.points(counted, "died", is_counter=True), period)
    oldest = _most(sampling.points(counted, "oldest_minutes"), period)
    shares = {at: [alarms.share(died.get(at, 0.0), n)] for at, n in left.items()}
    return [
        plots.figures_plot(
            "Items in the queue",
            times,
            {at: [n, dead.get(at, 0.0)] for at, n in waiting.items()},
            period,
        ),
        plots.figures_plot("Mails in", times, {at: [n] for at, n in accepted.items()}, period),
        plots.figures_plot(
            "Mails out",
            times,
            {at: [n, died.get(at, 0.0)] for at, n in left.items()},
            period,
        ),
        plots.figures_plot("Bounce share", times, shares, period, unit=" %"),
        plots.figures_plot(
            "Age of the oldest", times, {at: [n] for at, n in oldest.items()}, period
        ),
    ]


def _most(points: Sequence[tuple[datetime, float]], period: str) -> dict[datetime, float]:
    found: dict[datetime, float] = {}
    for at, value in points:
        bucket = reports.floor(at, period)
        found[bucket] = max(value, found.get(bucket, 0.0))
    return found


def _sums(points: Sequence[tuple[datetime, float]], period: str) -> dict[datetime, float]:
    found: dict[datetime, float] = defaultdict(float)
    for at, value in points:
        found[reports.floor(at, period)] += value
    return dict(found)
