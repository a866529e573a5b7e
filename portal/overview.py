"""The overview of a workspace, for its members."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext, gettext_noop

from accounts.usage import reports
from gateway_project.core.api.methods import require_safe
from gateway_project.core.ratelimit import State
from portal import exports, figures, plots
from portal.members import Member, workspace_page

KEYS_SHOWN = 20
STOP_POLLING = 286
NOTHING = {"requests": 0, "flagged": 0, "errors": 0}
RANGES = {
    "1h": (gettext_noop("1 hour"), timedelta(hours=1), "minute"),
    "24h": (gettext_noop("24 hours"), timedelta(hours=24), "hour"),
    "7d": (gettext_noop("7 days"), timedelta(days=7), "hour"),
    "30d": (gettext_noop("30 days"), timedelta(days=30), "day"),
}


class Step(NamedTuple):
    label: str
    is_done: bool
    url: str
    hint: str


@require_safe
@workspace_page
def overview(request: HttpRequest, member: Member) -> HttpResponseBase:
    """What the workspace's keys did: read from the roll-ups alone, however many rows there are."""
    chosen = request.GET.get("range", "24h")
    if chosen not in RANGES:
        chosen = "24h"
    _, length, period = RANGES[chosen]
    keys = list(member.keys.without_policies())
    for key in keys:
        key.workspace = member.workspace  # with its plan, which was read already
    facts = figures.recent(member.workspace.pk, length, period, log=reverse("portal-requests"))
    by_key = reports.by_subject([key.pk for key in keys], facts["since"], period)
    elsewhere = {
        name: max(0, facts[name] - sum(sums[name] for sums in by_key.values())) for name in NOTHING
    }
    shown = [key for key in keys if key.pk in by_key or key.status in ("active", "grace")]
    shown.sort(key=lambda key: -by_key.get(key.pk, NOTHING)["requests"])
    shown = shown[:KEYS_SHOWN]
    limits = reports.limits_left(shown)
    steps = _steps(member, bool(keys), has_calls=bool(facts["requests"]))
    rows = [
        (key, by_key.get(key.pk, NOTHING), left) for key, left in zip(shown, limits, strict=True)
    ]
    of_day = (left["workspace_day"] for key, _, left in rows if left and not key.is_test)
    facts |= {
        "member": member,
        "ranges": [(name, gettext(label)) for name, (label, _, _) in RANGES.items()],
        "chosen": chosen,
        "rows": rows,
        "elsewhere": elsewhere if elsewhere["requests"] else None,
        "more_keys": max(0, len(keys) - KEYS_SHOWN),
        "workspace_day": next(of_day, None),  # test keys count apart
        "steps": steps,
        "seen": sum(step.is_done for step in steps or ()),
    }
    facts["live"] = f"{request.path}?range={chosen}"
    if request.headers.get("HX-Request"):  # the figures alone, for whoever keeps the page open
        return exports.as_page(
            request, "portal/pages/figures.html", facts, plots.files(*facts["plots"])
        )
    files = {**plots.files(*facts["plots"]), "keys": lambda: _table(facts["rows"])}
    return exports.page(request, "portal/pages/overview.html", facts, files)


def _table(rows: list[Any]) -> exports.Table:
    cells = (
        [key.pk, key.name, key.is_test, *(sums[name] for name in NOTHING), *_used(left)]
        for key, sums, left in rows
    )
    columns = (
        "id",
        "name",
        "is_test",
        *NOTHING,
        "minute_used",
        "minute_limit",
        "day_used",
        "day_limit",
    )
    return exports.Table(columns, cells)


def _used(left: dict[str, State]) -> list[int | None]:
    states = [left.get(name) for name in ("minute", "day")]
    return [
        value
        for state in states
        for value in ((state.limit - state.remaining, state.limit) if state else (None, None))
    ]


@require_safe
@workspace_page
def first_steps(request: HttpRequest, member: Member) -> HttpResponse:
    """The checklist of the overview, asked for again until all is done.

    286 tells htmx to stop asking (https://htmx.org/docs/#polling).
    """
    has_key = member.keys.exists()
    steps = _steps(member, has_key)
    if steps is not None and request.GET.get("seen") == str(sum(s.is_done for s in steps)):
        return HttpResponse(status=204)  # nothing to swap, and nobody loses their focus
    facts = {
        "member": member,
        "steps": steps,
        "seen": sum(step.is_done for step in steps or ()),
        "just_done": steps is None,
    }
    status = STOP_POLLING if steps is None else 200
    return render(request, "portal/pages/first_steps.html", facts, status=status)


def _steps(member: Member, has_key: bool, *, has_calls: bool = False) -> list[Step] | None:
    """What is to do before the workspace is at work; None when nothing is left."""
    has_calls = has_calls or reports.has_usage(member.workspace.pk)
    steps = [
        Step(
            gettext("Confirm your e-mail address"),
            member.workspace.is_confirmed,
            reverse("account_email"),
            gettext(
                "The link is in the mail we sent. Until then keys work at the limits of a trial."
            ),
        ),
        Step(
            gettext("Make a key"),
            has_key,
            reverse("portal-keys"),
            gettext("It is shown once, with a first call."),
        ),
        Step(
            gettext("Send the first request"),
            has_calls,
            reverse("portal-guide", args=["quickstart"]),
            gettext("From your program, or in the playground. This ticks itself within seconds."),
        ),
    ]
    return None if all(step.is_done for step in steps) else steps
