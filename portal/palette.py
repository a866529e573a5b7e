"""One box for all: pages by name, keys by name or what lists show of them, anything by its id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

from django.db.models import Q
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import reverse

from accounts.usage import reading
from detection.models import Job
from gateway_project.core.api.methods import require_safe
from portal.members import Member, workspace_page
from webhooks.models import Webhook, WebhookDelivery

RESULTS_MAX = 12
WORD_CHARS_MAX = 200
PAGES = (
    ("Overview", "portal-overview", "charts, quota, limits"),
    ("Keys", "portal-keys", "make, rotate, revoke"),
    ("Playground", "portal-playground", "try a text"),
    ("Requests", "portal-requests", "log, errors, export"),
    ("Jobs", "portal-jobs", "batches"),
    ("Webhooks", "portal-webhooks", "deliveries, secrets"),
    ("Inbox", "portal-inbox", "test receiver"),
    ("People", "portal-people", "invite, roles, domains"),
    ("Workspace", "portal-workspace", "name, two factors"),
    ("New workspace", "portal-workspace-new", ""),
    ("Usage", "portal-usage", "plan, month, forecast"),
    ("Audit", "portal-audit", "who did what"),
    ("Settings", "portal-settings", "profile, delete the account"),
    ("E-mail address", "account_email", "change"),
    ("Password", "account_change_password", "change"),
    ("Two-factor and passkeys", "mfa_index", "app, recovery codes"),
    ("Sessions", "usersessions_list", "end a stolen one"),
    ("Quickstart", "portal-quickstart", "first call"),
)


class Result(NamedTuple):
    label: str
    hint: str
    url: str


@require_safe
@workspace_page
def search(request: HttpRequest, member: Member) -> HttpResponse:
    """`{results: [{label, hint, url}]}`; nothing of another workspace is found."""
    word = request.GET.get("q", "").strip()[:WORD_CHARS_MAX]
    found = list(_found(member, word))[:RESULTS_MAX]
    return JsonResponse({"results": [result._asdict() for result in found]})


def _found(member: Member, word: str) -> Iterator[Result]:
    try:
        wanted = UUID(word)
    except ValueError:
        pass
    else:
        yield from _by_id(member, wanted)
        return
    folded = word.casefold()
    for label, name, hint in PAGES:
        if name == "portal-audit" and not member.can_audit:
            continue
        if folded in f"{label} {hint}".casefold():
            yield Result(label, hint, reverse(name))
    if len(word) >= 2:
        yield from _keys(member, word)


def _keys(member: Member, word: str) -> Iterator[Result]:
    start, _, end = word.partition("…")
    named = Q(name__icontains=word) | Q(last4=word)
    if word.startswith("gw_"):
        # A whole key that somebody pasted is found by its beginning, and goes no further.
        named |= Q(prefix__startswith=start[:12], last4__endswith=end)
    for key in member.keys.without_policies().filter(named).order_by("-id")[:RESULTS_MAX]:
        hint = f"key {key.prefix}…{key.last4}, {key.status}"
        yield Result(key.name, hint, reverse("portal-key", args=[key.pk]))


def _by_id(member: Member, wanted: UUID) -> Iterator[Result]:
    """Whatever of the workspace has this id, or an event of this webhook-id."""
    workspace = member.workspace
    if reading.get(workspace, wanted) is not None:
        yield Result("Request", str(wanted), reverse("portal-request", args=[wanted]))
    if key := member.keys.filter(pk=wanted).first():
        yield Result(key.name, "key", reverse("portal-key", args=[wanted]))
    if Job.objects.filter(workspace=workspace, pk=wanted).exists():
        yield Result("Job", str(wanted), reverse("portal-job", args=[wanted]))
    if hook := Webhook.objects.listed().filter(workspace=workspace, pk=wanted).first():
        yield Result(hook.url, "webhook", reverse("portal-webhook", args=[wanted]))
    deliveries = WebhookDelivery.objects.filter(
        Q(pk=wanted) | Q(event_id=wanted),
        webhook__workspace=workspace,
        webhook__deleted_at=None,
    )
    for delivery in deliveries[:RESULTS_MAX]:
        url = reverse("portal-delivery", args=[delivery.pk])
        yield Result(f"Delivery of {delivery.event_type}", delivery.status, url)
