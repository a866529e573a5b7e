"""The keys of a workspace, for its members."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from accounts import services
from accounts.models import ApiKey
from accounts.usage import reports
from gateway_project.core import errors
from portal import figures
from portal.forms import KeyForm, RevokeForm, RotateForm
from portal.members import Member, secretly, shows_secrets, workspace_page
from portal.views import base_url


@require_http_methods(["GET", "HEAD", "POST"])
@shows_secrets
@workspace_page
def keys(request: HttpRequest, member: Member) -> HttpResponse:
    """List them, and make one: its text is on the answer to that POST and nowhere else."""
    form = KeyForm(member.workspace.plan, request.POST if request.method == "POST" else None)
    made: dict[str, Any] = {}
    if request.method == "POST":
        member.must_change()
        if form.is_valid() and _is_within_plan(form, member):
            try:
                key, text = services.issue_key(
                    member.workspace,
                    actor=member.actor(request),
                    within_plan=True,
                    **form.cleaned_data,
                )
            except errors.TooMany as exc:
                form.add_error(None, str(exc.detail))
            else:
                made = {"made": key, "text": text, "base_url": base_url(request)}
                form = KeyForm(member.workspace.plan)
    found = member.keys.without_policies()
    facts = {"member": member, "keys": found, "form": form, **made}
    page = render(request, "portal/pages/keys.html", facts)
    return secretly(page) if made else page


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
@workspace_page
def key(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    found = member.key(key_id)
    return _key_page(request, member, found, RevokeForm(found))


@require_POST
@shows_secrets
@workspace_page
def rotate(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    member.must_change()
    found, form = member.key(key_id), RotateForm(request.POST)
    if not form.is_valid():
        return _key_page(request, member, found, RevokeForm(found))
    try:
        successor, text = services.rotate_key(
            found,
            grace_seconds=form.cleaned_data["grace_seconds"],
            actor=member.actor(request),
        )
    except (errors.Conflict, errors.TooMany) as exc:
        messages.error(request, str(exc.detail))
        return redirect("portal-key", key_id=found.pk)
    facts = {"made": successor, "text": text, "base_url": base_url(request)}
    page = _key_page(request, member, successor, RevokeForm(successor), **facts)
    return secretly(page)


@require_POST
@workspace_page
def revoke(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    member.must_change()
    found = member.key(key_id)
    form = RevokeForm(found, request.POST)
    if not form.is_valid():
        return _key_page(request, member, found, form)
    services.revoke_key(found, actor=member.actor(request))
    messages.success(request, f"“{found.name}” is revoked: no worker accepts it any more.")
    return redirect("portal-keys")


def _key_page(
    request: HttpRequest, member: Member, found: ApiKey, revoke_form: RevokeForm, **more: Any
) -> HttpResponse:
    (limits,) = reports.limits_left([found])
    facts = {
        "member": member,
        "key": found,
        "limits": limits,
        "revoke_form": revoke_form,
        "rotate_form": RotateForm(),
        **figures.recent(found.pk, timedelta(days=30), "day"),
        **more,
    }
    return render(request, "portal/pages/key.html", facts)
