"""Usage and plan: the month so far, by day, key, endpoint and who judged; where it is going."""

from __future__ import annotations

from calendar import monthrange
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import urlencode

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import reverse

from accounts.models import ApiKey, Plan, Workspace
from accounts.usage import reports
from detection import comparisons
from gateway_project.core import clock
from gateway_project.core.api.methods import require_safe
from gateway_project.core.ratelimit import State
from portal import exports, plots
from portal.clocks import in_query
from portal.members import Member, workspace_page

MONTHS_BACK_MAX = 24
SUMS = ("requests", "units", "tests", "flagged", "engine", "remembered", "embedded")
COLUMNS = ("day", "endpoint", *SUMS)
PLANS = ("plan", "day_quota", "minute", "log_days", "keys", "days_above")
PLANS_SHOWN = 20
JUDGES = ("engine", "remembered", "embedded")
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
def usage(request: HttpRequest, member: Member) -> HttpResponseBase:
    now, month = clock.now(), chosen_month(request.GET.get("month", ""))
    rows = reports.charged(member.workspace.pk, month.begins, month.ends)
    total = _sums(rows)
    is_running = month.ends > now
    keys = list(member.keys.without_policies())
    ids = [key.pk for key in keys]
    by_key = reports.by_subject(ids, month.begins, "day", until=month.ends)
    days = Counter[datetime]()
    for row in rows:
        days[row["at"]] += row["units"]
    used = [(key, by_key[key.pk]) for key in keys if key.pk in by_key]
    plans = _plans(member.workspace, days)
    facts: dict[str, Any] = {
        "member": member,
        "month": month,
        "before": month.before,
        "is_running": is_running,
        "total": total,
        "judged": total["units"] + total["tests"],
        "forecast": forecast(total["units"], month, now) if is_running else None,
        "quota": member.workspace.day_quota,
        "busiest": max(days.values(), default=0),
        "plot": _plot(rows, month, now),
        "by_key": sorted(used, key=lambda pair: -pair[1]["requests"])[:100],
        "by_endpoint": _by_endpoint(rows),
        "then": _before(member.workspace, month, now),
        "today": _today(member.workspace, keys, now) if is_running else None,
        "plans": plans,
        "spent": comparisons.spent_in(
            member.workspace.pk, month.begins.date(), (month.ends - timedelta(days=1)).date()
        ),
        "has_alerts": set(member.workspace.wanted_events) >= ALERTS,
    }
    files = {
        **plots.files(facts["plot"]),
        "costs": lambda: exports.table(comparisons.SPENT, facts["spent"]),
        "plans": lambda: exports.Table(PLANS, [[fit[name] for name in PLANS] for fit in plans]),
        "judges": lambda: exports.Table(("judge", "detections"), [(n, total[n]) for n in JUDGES]),
        "endpoints": lambda: exports.Table(
            ("endpoint", *SUMS),
            [[name, *(sums[n] for n in SUMS)] for name, sums in facts["by_endpoint"]],
        ),
        "keys": lambda: exports.Table(
            ("id", "name", "is_test", "requests", "flagged", "errors"),
            [
                [
                    key.pk,
                    key.name,
                    key.is_test,
                    *(sums[n] for n in ("requests", "flagged", "errors")),
                ]
                for key, sums in used
            ],
        ),
    }
    return exports.page(request, "portal/pages/usage.html", facts, files)


def forecast(units: int, month: Month, now: datetime) -> int:
    """What the month comes to if it goes on as it has so far; at least a day is looked at."""
    passed = max(now - month.begins, timedelta(days=1))
    return round(units * ((month.ends - month.begins) / passed))


def _before(workspace: Workspace, month: Month, now: datetime) -> int:
    """Detections of the month before, of as many days as have passed of this one."""
    before = month.before
    passed = min(now, month.ends) - month.begins
    until = min(before.ends, before.begins + passed)
    rows = reports.charged(workspace.pk, before.begins, until)
    return sum(int(row["units"]) for row in rows)


class Today(NamedTuple):
    """What the workspace has used of its day, and when the rest is gone at the pace of the last
    hour; None: it lasts."""

    state: State
    ends_at: datetime | None


def _today(workspace: Workspace, keys: list[ApiKey], now: datetime) -> Today | None:
    live = next((key for key in keys if not key.is_test), None)  # test keys count apart
    if live is None:
        return None
    live.workspace = workspace  # with its plan, which was read already
    state = reports.limits_left([live])[0].get("workspace_day")
    if state is None:
        return None
    rows = reports.charged(workspace.pk, now - timedelta(hours=1), now, "minute")
    return Today(state, ends_at(state, sum(row["units"] for row in rows), now))


def ends_at(state: State, an_hour: int, now: datetime) -> datetime | None:
    """When `state` is used up at so many an hour; None: not before midnight (UTC), when it is
    whole again."""
    if not an_hour:
        return None
    end = now + timedelta(hours=state.remaining / an_hour)
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return end if end < midnight + timedelta(days=1) else None


def _plans(workspace: Workspace, days: Counter[datetime]) -> list[dict[str, Any]]:
    """How the month would have fared on each plan: the days that were above it."""
    return [
        {
            "plan": plan.name,
            "is_theirs": plan.pk == workspace.plan_id,
            "day_quota": plan.rate_limit_per_day,
            "minute": plan.rate_limit_per_minute,
            "log_days": plan.log_days,
            "keys": plan.keys_max,
            "days_above": sum(units > plan.rate_limit_per_day for units in days.values()),
        }
        for plan in Plan.objects.order_by("rate_limit_per_day", "name")[:PLANS_SHOWN]
    ]


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
        known["errors"] += row["requests"] - row["units"] - row["tests"]
    log = reverse("portal-requests")

    def link(begin: datetime, end: datetime) -> str:
        return f"{log}?{urlencode({'since': in_query(begin), 'until': in_query(end)})}"

    return plots.requests_plot(plots.buckets(month.begins, last, "day"), series, "day", link)


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
