"""The inbox of a workspace: what its built-in receiver got, live."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext

from accounts.events import audit
from gateway_project.core import errors
from gateway_project.core.api.methods import require_safe
from gateway_project.core.storable import unstorable
from portal.members import Member, secretly, shows_secrets, workspace_page
from portal.posting import posts_for, show_once, take_shown
from webhooks import catalogue, services
from webhooks.models import Inbox
from webhooks.receiving import inbox

LINES_CHARS_MAX = 2 * inbox.BODY_BYTES_MAX
EVENTS = [event.name for event in catalogue.TYPES if event.name.startswith("detection.")]


@require_safe
@workspace_page
def inbox_page(request: HttpRequest, member: Member) -> HttpResponseBase:
    """All of it, or to htmx the list alone, when there is something new."""
    found = inbox.of(member.workspace)
    if request.headers.get("HX-Request"):
        facts = _received(member, found)
        if request.GET.get("seen") == facts["seen"]:
            return HttpResponse(status=204)  # nothing to swap, and nobody loses their place
        return render(request, "portal/pages/inbox_received.html", facts)
    facts = {
        **_received(member, found),
        "address": _address(request, found),
        "kept": inbox.KEPT_MAX,
    }
    if shown := take_shown(request, "inbox"):
        facts |= {**shown, "made": facts["webhook"]}
    page = render(request, "portal/pages/inbox.html", facts)
    return secretly(page) if shown else page


def _received(member: Member, found: Inbox) -> dict[str, Any]:
    received = inbox.received(found)
    return {
        "member": member,
        "webhook": inbox.webhook_of(found),
        "received": received,
        "shown": [
            (
                one,
                inbox.findings_of(one),
                # Of the audit trail, as on the page of a delivery, it is for who may read that.
                _readable(one.body) if member.can_audit or not inbox.is_of_audit(one) else None,
            )
            for one in received
        ],
        "seen": str(received[0].pk) if received else "",
    }


def _readable(body: str) -> str:
    """JSON with a line for each field; whatever else it is, or grows beyond measure, as it came."""
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if unstorable(whole):  # too deep to be written, or no text: `"\\ud800"`
        return body
    lines = json.dumps(whole, indent=2, ensure_ascii=False)
    return lines if len(lines) <= LINES_CHARS_MAX else body


def _address(request: HttpRequest, found: Inbox) -> str:
    return request.build_absolute_uri(reverse("webhooks-inbox", args=[found.token]))


@posts_for("portal-inbox")
@shows_secrets
@workspace_page
def make_webhook(request: HttpRequest, member: Member) -> HttpResponse:
    """The webhook that sends to the inbox, whose page shows the secret, once."""
    member.must_change()
    found = inbox.of(member.workspace)
    try:
        _, secret = services.register(
            member.workspace.pk,
            _address(request, found),
            EVENTS,
            description="The inbox of this workspace",
            inbox=found,
            actor=member.actor(request),
        )
    except errors.Conflict as exc:
        messages.error(request, exc.for_people())
        return redirect("portal-inbox")
    show_once(request, "inbox", secret=secret)
    return redirect("portal-inbox")


@posts_for("portal-inbox")
@workspace_page
def clear(request: HttpRequest, member: Member) -> HttpResponse:
    member.must_change()
    found = inbox.of(member.workspace)
    with transaction.atomic():
        inbox.clear(found)
        audit(
            "inbox.cleared",
            workspace=member.workspace,
            target=found.pk,
            **member.actor(request).fields(),
        )
    messages.success(request, gettext("The inbox is empty."))
    return redirect("portal-inbox")
