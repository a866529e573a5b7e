"""The keys of a workspace, for its members."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import F, Q
from django.db.models.expressions import OrderBy
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext

from accounts import services
from accounts.models import AUDIT_SCOPE, ApiKey, ApiKeyQuerySet
from accounts.usage import reading, reports
from gateway_project.core import clock, errors
from gateway_project.core.api.methods import require_http_methods, require_safe
from portal import exports, figures, plots
from portal.clocks import written, zone_name
from portal.forms import KeyEditForm, KeyFilter, KeyForm, RevokeForm, RotateForm
from portal.members import Member, secretly, shows_secrets, workspace_page
from portal.posting import is_first, posts_for, show_once, take_shown
from portal.views import base_url

ONE_DAY = 24 * 60 * 60
KEYS_ON_A_PAGE = 25
CALLS_LOOKED_AT, CALLERS_SHOWN = 500, 10
CALLERS = ("address", "program", "calls", "last")
COLUMNS = (
    *("id", "name", "key", "state", "is_test", "scopes", "tags", "owner"),
    *("per_minute", "per_day", "created_at", "last_used_at", "expires_at"),
)
ORDERS: dict[str, tuple[str | OrderBy, ...]] = {
    "": ("-created_at", "-id"),
    "name": ("name", "-id"),
    "used": (F("last_used_at").desc(nulls_last=True), "-id"),
    "expires": (F("expires_at").asc(nulls_last=True), "-id"),
}


@require_http_methods(["GET", "HEAD", "POST"])
@shows_secrets
@workspace_page
def keys(request: HttpRequest, member: Member) -> HttpResponse:
    """List them, and make one: its page shows the text, once."""
    form = KeyForm(
        member.workspace.plan,
        request.POST if request.method == "POST" else None,
        can_audit=member.can_audit,
    )
    if request.method == "POST":
        member.must_change()
        if form.is_valid():
            if not is_first(request):
                return redirect("portal-keys")
            try:
                key, text = services.issue_key(
                    member.workspace,
                    actor=member.actor(request),
                    within_plan=True,
                    **form.cleaned_data,
                )
            except errors.TooMany as exc:
                form.add_error(None, exc.for_people())
            else:
                show_once(request, key.pk, text=text)
                return redirect("portal-key", key_id=key.pk)
    return _list(request, member, form)


def _list(request: HttpRequest, member: Member, form: KeyForm) -> HttpResponse:
    """A page of the keys that were looked for, with what each did in the last day."""
    wanted = KeyFilter(request.GET)
    wanted.full_clean()
    found = _found(member, **wanted.cleaned_data)
    pages = Paginator(found, KEYS_ON_A_PAGE)
    shown = pages.get_page(request.GET.get("page"))
    keys = list(shown.object_list)
    since = reports.floor(clock.now() - timedelta(hours=24), "hour")
    sums = reports.by_subject([key.pk for key in keys], since, "hour")
    query = request.GET.copy()
    query.pop("page", None)
    facts = {
        "member": member,
        "page": shown,
        "keys": [(key, sums.get(key.pk, {}).get("requests", 0)) for key in keys],
        "total": member.keys.count(),
        "filter": wanted,
        "is_filtered": bool(query),
        "query": query.urlencode(),
        "form": form,
    }
    return render(request, "portal/pages/keys.html", facts)


@require_safe
@workspace_page
def export(request: HttpRequest, member: Member) -> HttpResponseBase:
    """The keys that the list's filters leave, as CSV; no key can be made of it."""
    wanted = KeyFilter(request.GET)
    wanted.full_clean()
    found = _found(member, **wanted.cleaned_data)[: exports.ROWS_MAX]
    rows = (
        [
            *(key.pk, key.name, f"{key.prefix}…{key.last4}", key.status, key.is_test),
            *(", ".join(key.scopes), ", ".join(key.tags), key.owner),
            *(key.rate_limit_per_minute, key.rate_limit_per_day),
            *(key.created_at, key.last_used_at, key.expires_at),
        ]
        for key in found
    )
    return exports.csv_file("keys.csv", COLUMNS, rows)


def _found(member: Member, q: str = "", state: str = "", sort: str = "") -> ApiKeyQuerySet:
    found = member.keys.without_policies()
    now = clock.now()
    if state == "":
        found = found.usable(now)
    elif state == "grace":
        found = found.usable(now).filter(grace_until__isnull=False)
    elif state == "ended":
        found = found.exclude(pk__in=member.keys.usable(now).values("pk"))
    if q:
        start, _, end = q.partition("…")
        by_text = Q(prefix__startswith=start[:12], last4__endswith=end) if q[:3] == "gw_" else Q()
        named = Q(name__icontains=q) | Q(owner__icontains=q) | Q(last4=q) | Q(tags__icontains=q)
        found = found.filter(named | by_text if by_text else named)
    return found.order_by(*ORDERS.get(sort, ORDERS[""]))


@require_safe
@workspace_page
def key(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponseBase:
    found = member.key(key_id)
    return _key_page(request, member, found, RevokeForm(found))


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def edit(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    member.must_change()
    found = member.key(key_id)
    form = KeyEditForm(
        found, request.POST if request.method == "POST" else None, can_audit=member.can_audit
    )
    if request.method == "POST" and form.is_valid():
        if changes := form.changes():
            services.update_key(
                found, changes, actor=member.actor(request), within_plan=False
            )  # the form is
        messages.success(request, gettext("Saved. Every worker knows it within a second."))
        return redirect("portal-key", key_id=found.pk)
    facts = {"member": member, "key": found, "form": form}
    return render(request, "portal/pages/key_edit.html", facts)


@posts_for("portal-key")
@shows_secrets
@workspace_page
def rotate(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponseBase:
    member.must_change()
    found, form = member.key(key_id), RotateForm(request.POST)
    if AUDIT_SCOPE in found.scopes:
        member.must("audit")  # the successor's text is theirs
    if not form.is_valid():
        return _key_page(request, member, found, RevokeForm(found))
    try:
        successor, text = services.rotate_key(
            found,
            grace_seconds=form.cleaned_data["grace_seconds"],
            actor=member.actor(request),
        )
    except (errors.Conflict, errors.TooMany) as exc:
        messages.error(request, exc.for_people())
        return redirect("portal-key", key_id=found.pk)
    show_once(request, successor.pk, text=text)
    return redirect("portal-key", key_id=successor.pk)


@posts_for("portal-key")
@workspace_page
def revoke(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponseBase:
    member.must_change()
    found = member.key(key_id)
    form = RevokeForm(found, request.POST)
    if not form.is_valid():
        return _key_page(request, member, found, form)
    services.revoke_key(found, actor=member.actor(request))
    text = gettext("“%(name)s” is revoked: no worker accepts it any more.")
    messages.success(request, text % {"name": found.name})
    return redirect("portal-key", key_id=found.pk)


@posts_for("portal-key")
@workspace_page
def extend(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    """One more day of grace for a key that was rotated."""
    member.must_change()
    found = member.key(key_id)
    if not is_first(request):
        return redirect("portal-key", key_id=found.pk)
    try:
        until = services.extend_grace(found, ONE_DAY, actor=member.actor(request))
    except errors.Conflict as exc:
        messages.error(request, exc.for_people())
    else:
        at = f"{written(until)} {zone_name()}"
        messages.success(request, gettext("The old key works until %(at)s.") % {"at": at})
    return redirect("portal-key", key_id=found.pk)


@posts_for("portal-key")
@workspace_page
def end(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    """End the grace of a rotated key now. Its successor works, so no name has to be typed."""
    member.must_change()
    found = member.key(key_id)
    if found.status != "grace":
        messages.error(
            request, gettext("This key is not in its grace any more. Nothing was changed.")
        )
    else:
        services.revoke_key(found, actor=member.actor(request))
        messages.success(
            request, gettext("The old key is refused from now on. Its successor works.")
        )
    return redirect("portal-key", key_id=found.pk)


def _rotation(member: Member, found: ApiKey) -> dict[str, Any]:
    """Of a key that replaced another, or was replaced: by which, and what still calls with it."""
    facts: dict[str, Any] = {
        "replaces": found.replaces.without_policies().first(),
        "successor": member.keys.filter(pk=found.replaced_by_id).first()
        if found.replaced_by_id
        else None,
    }
    successor = facts["successor"]
    if successor is not None:
        since = reports.floor(successor.created_at, "hour")
        sums = reports.by_subject([found.pk], since, "hour").get(found.pk)
        facts["calls_since"] = sums["requests"] if sums else 0
        if facts["calls_since"] and found.status == "grace":
            facts["callers"] = _callers(member, found, successor)
    return facts


def _callers(member: Member, found: ApiKey, successor: ApiKey) -> list[dict[str, Any]]:
    """What still calls with it, by address and program, of the newest rows of the log."""
    rows = reading.page(
        member.workspace, api_key_id=found.pk, since=successor.created_at, size=CALLS_LOOKED_AT
    ).rows
    callers: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:  # the newest first
        who = row.why.get("ip", ""), row.why.get("agent", "")
        known = callers.setdefault(
            who, {"ip": who[0], "agent": who[1], "last": row.created_at, "calls": 0}
        )
        known["calls"] += 1
    return sorted(callers.values(), key=lambda one: -one["calls"])[:CALLERS_SHOWN]


def _key_page(
    request: HttpRequest, member: Member, found: ApiKey, revoke_form: RevokeForm, **more: Any
) -> HttpResponseBase:
    (limits,) = reports.limits_left([found])
    shown = {} if exports.NAME in request.GET else take_shown(request, found.pk)
    facts = {
        "member": member,
        "key": found,
        "limits": limits,
        **_rotation(member, found),
        "revoke_form": revoke_form,
        "rotate_form": RotateForm(),
        **figures.recent(
            found.pk,
            timedelta(days=30),
            "day",
            log=f"{reverse('portal-requests')}?key={found.pk}",
        ),
        **({"made": found, "base_url": base_url(request)} if shown else {}),
        **shown,
        **more,
    }
    files = {
        **plots.files(*facts["plots"]),
        "callers": lambda: exports.Table(
            CALLERS,
            [
                (one["ip"], one["agent"], one["calls"], one["last"])
                for one in facts.get("callers", ())
            ],
        ),
    }
    page = exports.page(request, "portal/pages/key.html", facts, files)
    return secretly(page) if shown else page
