"""Usage and plan: the month so far, by day, key, endpoint and who judged; where it is going."""

from __future__ import annotations

from calendar import monthrange
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render

from accounts.usage import reports
from gateway_project.core import clock
from gateway_project.core.api.methods import require_safe
from portal import exports, plots
from portal.members import Member, workspace_page

MONTHS_BACK_MAX = 24
SUMS = ("requests", "units", "flagged", "engine", "remembered", "embedded")
COLUMNS = ("day", "endpoint", *SUMS)
ALERTS = frozenset(("quota.80", "quota.100"))


class Month(NamedTuple):
    """One of UTC, as limits and sums have it."""

    begins: datetime
    ends: datetime

    @property
    def name(self) -> str:
        return f"{self.begins:%Y-%m}"

    @property
    def before(self) -> Month:
        return month_of(self.begins - timedelta(days=1))


def month_of(at: datetime) -> Month:
    first = at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return Month(first, first + timedelta(days=monthrange(first.year, first.month)[1]))


def chosen_month(text: str) -> Month:
    """`2026-05`; this month for whatever is none, or too far back."""
    now = clock.now()
    try:
        wanted = month_of(datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return month_of(now)
    is_known = now - timedelta(days=31 * MONTHS_BACK_MAX) <= wanted.begins <= now
    return wanted if is_known else month_of(now)


@require_safe
@workspace_page
def usage(request: HttpRequest, member: Member) -> HttpResponse:
    now, month = clock.now(), chosen_month(request.GET.get("month", ""))
    rows = reports.charged(member.workspace.pk, month.begins, month.ends)
    total = _sums(rows)
    is_running = month.ends > now
    keys = list(member.keys.without_policies())
    by_key = reports.by_subject([key.pk for key in keys], month.begins, "day") if is_running else {}
    of_tests = sum(by_key.get(key.pk, {}).get("requests", 0) for key in keys if key.is_test)
    days = Counter[datetime]()
    for row in rows:
        days[row["at"]] += row["units"]
    used = [(key, by_key[key.pk]) for key in keys if key.pk in by_key]
    facts = {
        "member": member,
        "month": month,
        "before": month.before,
        "is_running": is_running,
        "total": total,
        "billed": max(0, total["units"] - of_tests),
        "of_tests": of_tests,
        "forecast": forecast(total["units"], month, now) if is_running else None,
        "quota": member.workspace.day_quota,
        "busiest": max(days.values(), default=0),
        "plot": _plot(rows, month, now),
        "by_key": sorted(used, key=lambda pair: -pair[1]["requests"])[:100],
        "by_endpoint": _by_endpoint(rows),
        "has_alerts": set(member.workspace.wanted_events) >= ALERTS,
    }
    return render(request, "portal/pages/usage.html", facts)


def forecast(units: int, month: Month, now: datetime) -> int:
    """What the month comes to if it goes on as it has so far; at least a day is looked at."""
    passed = max(now - month.begins, timedelta(days=1))
    return round(units * ((month.ends - month.begins) / passed))


def _sums(rows: list[dict[str, Any]]) -> dict[str, int]:
    total = Counter[str]()
    for row in rows:
        total.update({name: row[name] for name in SUMS})
    return {name: total[name] for name in SUMS}


def _plot(rows: list[dict[str, Any]], month: Month, now: datetime) -> plots.Plot:
    last = min(month.ends - timedelta(seconds=1), now)
    series: dict[datetime, dict[str, int]] = {}
    for row in rows:
        known = series.setdefault(row["at"], {"requests": 0, "flagged": 0, "errors": 0})
        known["requests"] += row["requests"]
        known["flagged"] += row["flagged"]
        known["errors"] += row["requests"] - row["units"]
    return plots.requests_plot(plots.buckets(month.begins, last, "day"), series, "day")


def _by_endpoint(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, int]]]:
    names = {row["endpoint"] for row in rows}
    found = [(name, _sums([row for row in rows if row["endpoint"] == name])) for name in names]
    return sorted(found, key=lambda pair: -pair[1]["requests"])


@require_safe
@workspace_page
def export(request: HttpRequest, member: Member) -> HttpResponseBase:
    """A month by day and endpoint, as CSV."""
    month = chosen_month(request.GET.get("month", ""))
    rows = reports.charged(member.workspace.pk, month.begins, month.ends)
    cells = ([f"{row['at']:%Y-%m-%d}", row["endpoint"], *(row[n] for n in SUMS)] for row in rows)
    return exports.csv_file(f"usage-{month.name}.csv", COLUMNS, cells)
