"""The overview of a workspace, for its members."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

from accounts.usage import reports
from gateway_project.core.api.methods import require_safe
from portal import figures
from portal.members import Member, workspace_page

KEYS_SHOWN = 20
STOP_POLLING = 286
NOTHING = {"requests": 0, "flagged": 0, "errors": 0}
RANGES = {
    "1h": ("1 hour", timedelta(hours=1), "minute"),
    "24h": ("24 hours", timedelta(hours=24), "hour"),
    "7d": ("7 days", timedelta(days=7), "hour"),
    "30d": ("30 days", timedelta(days=30), "day"),
}


class Step(NamedTuple):
    label: str
    is_done: bool
    url: str
    hint: str


@require_safe
@workspace_page
def overview(request: HttpRequest, member: Member) -> HttpResponse:
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
    facts |= {
        "member": member,
        "ranges": [(name, label) for name, (label, _, _) in RANGES.items()],
        "chosen": chosen,
        "rows": [
            (key, by_key.get(key.pk, NOTHING), left)
            for key, left in zip(shown, limits, strict=True)
        ],
        "elsewhere": elsewhere if elsewhere["requests"] else None,
        "more_keys": max(0, len(keys) - KEYS_SHOWN),
        "workspace_day": next((left["workspace_day"] for left in limits if left), None),
        "steps": steps,
        "seen": sum(step.is_done for step in steps or ()),
    }
    return render(request, "portal/pages/overview.html", facts)


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
            "Confirm your e-mail address",
            member.workspace.is_confirmed,
            reverse("account_email"),
            "The link is in the mail we sent. Until then keys work at the limits of a trial.",
        ),
        Step("Make a key", has_key, reverse("portal-keys"), "It is shown once, with a first call."),
        Step(
            "Send the first request",
            has_calls,
            reverse("portal-quickstart"),
            "From your program, or in the playground. This ticks itself within seconds.",
        ),
    ]
    return None if all(step.is_done for step in steps) else steps
