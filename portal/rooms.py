"""The overview and the keys of a workspace, for its members."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts import reports, services
from accounts.models import ApiKey
from gateway_project.core import errors
from portal import plots
from portal.forms import KeyForm, RevokeForm, RotateForm
from portal.members import Member, actor, room

RANGES = {
    "1h": ("1 hour", timedelta(hours=1), "minute"),
    "24h": ("24 hours", timedelta(hours=24), "hour"),
    "7d": ("7 days", timedelta(days=7), "hour"),
    "30d": ("30 days", timedelta(days=30), "day"),
}


@require_safe
@room
def overview(request: HttpRequest, member: Member) -> HttpResponse:
    """What the workspace's keys did: read from the roll-ups alone, however many rows there are."""
    chosen = request.GET.get("range", "24h")
    if chosen not in RANGES:
        chosen = "24h"
    _, length, period = RANGES[chosen]
    keys = list(member.workspace.keys(manager="objects").listed())
    facts = _usage(member.workspace.pk, length, period)
    by_key = reports.by_subject((key.pk for key in keys), facts["since"], period)
    steps = {
        "Confirm your e-mail address": member.workspace.is_confirmed,
        "Make a key": bool(keys),
        "Send the first request": bool(facts["requests"]) or reports.has_usage(member.workspace.pk),
    }
    facts |= {
        "member": member,
        "ranges": [(name, words) for name, (words, _, _) in RANGES.items()],
        "chosen": chosen,
        "rows": [(key, by_key[key.pk]) for key in keys if key.pk in by_key],
        "steps": None if all(steps.values()) else steps,
    }
    return render(request, "portal/rooms/overview.html", facts)


def _usage(subject: UUID, length: timedelta, period: str) -> dict[str, Any]:
    since = (timezone.now() - length).replace(second=0, microsecond=0)
    if period != "minute":
        since = since.replace(minute=0)
    if period == "day":
        since = since.replace(hour=0)
    rows = reports.timeline(subject, since, period)
    series = {row["at"]: row for row in rows}
    times = plots.buckets(since, timezone.now(), period)
    total = Counter[str]()
    for row in rows:
        total.update({name: row[name] for name in ("requests", "flagged", "errors")})
    latency = [sum(counts) for counts in zip(*(row["latency"] for row in rows), strict=True)]
    return {
        "since": since,
        "requests": total["requests"],
        "flagged": total["flagged"],
        "errors": total["errors"],
        "p95_ms": reports.percentile(latency, 0.95) if latency else None,
        "plots": [
            plots.requests_plot(times, series, period),
            plots.latency_plot(times, series, period),
        ],
    }


@require_http_methods(["GET", "HEAD", "POST"])
@room
def keys(request: HttpRequest, member: Member) -> HttpResponse:
    """List them, and make one: its text is on the answer to that POST and nowhere else."""
    form = KeyForm(member.workspace.plan, request.POST if request.method == "POST" else None)
    made: dict[str, Any] = {}
    if request.method == "POST":
        member.must_change()
        if form.is_valid() and _is_within_plan(form, member):
            key, text = services.issue_key(
                member.workspace, actor=actor(request, member), **form.cleaned_data
            )
            made = {"made": key, "text": text, "base_url": _base_url(request)}
            form = KeyForm(member.workspace.plan)
    found = member.workspace.keys(manager="objects").listed()
    facts = {"member": member, "keys": found, "form": form, **made}
    return render(request, "portal/rooms/keys.html", facts)


def _is_within_plan(form: KeyForm, member: Member) -> bool:
    try:
        services.check_within_plan(
            member.workspace.plan,
            per_minute=form.cleaned_data["rate_limit_per_minute"],
            per_day=form.cleaned_data["rate_limit_per_day"],
        )
    except errors.ValidationFailed as exc:
        for wrong in exc.errors:
            form.add_error(wrong["field"], wrong["message"])
        return False
    return True


@require_safe
@room
def key(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    found = _key(member, key_id)
    return _key_page(request, member, found, RevokeForm(found))


@require_POST
@room
def rotate(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    member.must_change()
    found, form = _key(member, key_id), RotateForm(request.POST)
    if not form.is_valid():
        return _key_page(request, member, found, RevokeForm(found))
    try:
        successor, text = services.rotate_key(
            found, grace_seconds=form.cleaned_data["grace_seconds"], actor=actor(request, member)
        )
    except errors.Conflict as exc:
        messages.error(request, str(exc.detail))
        return redirect("portal-key", key_id=found.pk)
    facts = {"made": successor, "text": text, "base_url": _base_url(request)}
    return _key_page(request, member, successor, RevokeForm(successor), **facts)


@require_POST
@room
def revoke(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    member.must_change()
    found = _key(member, key_id)
    form = RevokeForm(found, request.POST)
    if not form.is_valid():
        return _key_page(request, member, found, form)
    services.revoke_key(found, actor=actor(request, member))
    messages.success(request, f"“{found.name}” is revoked: no worker accepts it any more.")
    return redirect("portal-keys")


def _key(member: Member, key_id: UUID) -> ApiKey:
    """A key of the member's workspace; another's is the same 404 as none."""
    found = member.workspace.keys(manager="objects").listed().filter(pk=key_id).first()
    if found is None:
        raise Http404
    return found


def _key_page(
    request: HttpRequest, member: Member, found: ApiKey, revoke_form: RevokeForm, **more: Any
) -> HttpResponse:
    facts = {
        "member": member,
        "key": found,
        "revoke_form": revoke_form,
        "rotate_form": RotateForm(),
        **_usage(found.pk, timedelta(days=30), "day"),
        **more,
    }
    return render(request, "portal/rooms/key.html", facts)


def _base_url(request: HttpRequest) -> str:
    return request.build_absolute_uri(reverse("portal-landing")).rstrip("/")
