"""One box for all: pages by name, keys by name or what lists show of them, anything by its id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

from django.db.models import Q
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import reverse
from django.utils.translation import gettext, gettext_noop

from accounts.usage import reading
from detection.models import Job
from gateway_project.core.api.methods import require_safe
from portal import guides
from portal.labels import named, translated
from portal.members import Member, workspace_page
from webhooks.models import Webhook, WebhookDelivery

RESULTS_MAX = 12
WORD_CHARS_MAX = 200
PAGES = (
    (gettext_noop("Overview"), "portal-overview", gettext_noop("charts, quota, limits")),
    (gettext_noop("Keys"), "portal-keys", gettext_noop("make, rotate, revoke")),
    (
        gettext_noop("Policy of the workspace"),
        "portal-policy",
        gettext_noop("threshold, allow, deny"),
    ),
    (gettext_noop("Playground"), "portal-playground", gettext_noop("try a text, a file")),
    (gettext_noop("Requests"), "portal-requests", gettext_noop("log, errors, export")),
    (gettext_noop("Quality"), "portal-quality", gettext_noop("false alarms, misses, budgets")),
    (gettext_noop("Jobs"), "portal-jobs", gettext_noop("batches")),
    (gettext_noop("Webhooks"), "portal-webhooks", gettext_noop("deliveries, secrets")),
    (gettext_noop("Inbox"), "portal-inbox", gettext_noop("test receiver")),
    (gettext_noop("People"), "portal-people", gettext_noop("invite, roles, domains")),
    (gettext_noop("Workspace"), "portal-workspace", gettext_noop("name, two factors")),
    (gettext_noop("New workspace"), "portal-workspace-new", ""),
    (gettext_noop("Usage"), "portal-usage", gettext_noop("plan, month, forecast")),
    (gettext_noop("Audit"), "portal-audit", gettext_noop("who did what")),
    (
        gettext_noop("Settings"),
        "portal-settings",
        gettext_noop("profile, archive, delete the account"),
    ),
    (gettext_noop("Mails"), "portal-preferences", gettext_noop("preferences, weekly summary")),
    (gettext_noop("E-mail address"), "account_email", gettext_noop("change")),
    (gettext_noop("Password"), "account_change_password", gettext_noop("change")),
    (gettext_noop("Two-factor and passkeys"), "mfa_index", gettext_noop("app, recovery codes")),
    (gettext_noop("Sessions"), "usersessions_list", gettext_noop("end a stolen one")),
    (gettext_noop("Guides"), "portal-guides", gettext_noop("how to, examples")),
    (gettext_noop("API docs"), "system-docs", gettext_noop("reference, errors")),
    (gettext_noop("Status"), "portal-status", gettext_noop("incidents")),
)
MAIL_PAGES = (
    (gettext_noop("Mail queue"), "portal-mail-queue", gettext_noop("destinations, live")),
    (gettext_noop("Mail items"), "portal-mail-items", gettext_noop("find, retry, bounce, delete")),
    (gettext_noop("Mail actions"), "portal-mail-actions", gettext_noop("progress of acts on many")),
    (gettext_noop("Mail store"), "portal-mail-storage", gettext_noop("read a mail")),
    (gettext_noop("Mail log"), "portal-mail-logs", gettext_noop("search, live tail")),
    (gettext_noop("Mail charts"), "portal-mail-charts", gettext_noop("queue, in, out, bounces")),
    (
        gettext_noop("Mail alerts"),
        "portal-mail-alerts",
        gettext_noop("oldest item, growth, dead, bounces"),
    ),
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
        yield from by_id(member, wanted)
        return
    folded = word.casefold()
    is_robins = hasattr(member.user, "robin_access")
    for label, name, hint in (*PAGES, *(MAIL_PAGES if is_robins else ())):
        if name == "portal-audit" and not member.can_audit:
            continue
        name_of, more = gettext(label), gettext(hint) if hint else ""
        # By its English words as well, which documents and colleagues use.
        if folded in f"{name_of} {more} {label} {hint}".casefold():
            yield Result(name_of, more, reverse(name))
    for entry in guides.index().entries:
        if folded and folded in entry.title.casefold():
            yield Result(entry.title, gettext("guide"), reverse("portal-guide", args=[entry.slug]))
    if len(word) >= 2:
        yield from _keys(member, word)


def _keys(member: Member, word: str) -> Iterator[Result]:
    start, _, end = word.partition("…")
    alike = Q(name__icontains=word) | Q(last4=word)
    if word.startswith("gw_"):
        # A whole key that somebody pasted is found by its beginning, and goes no further.
        alike |= Q(prefix__startswith=start[:12], last4__endswith=end)
    for key in member.keys.without_policies().filter(alike).order_by("-id")[:RESULTS_MAX]:
        facts = {"key": f"{key.prefix}…{key.last4}", "state": translated(key.status)}
        hint = gettext("key %(key)s, %(state)s") % facts
        yield Result(named(key), hint, reverse("portal-key", args=[key.pk]))


def by_id(member: Member, wanted: UUID) -> Iterator[Result]:
    """Whatever of the workspace has this id, or an event of this webhook-id."""
    workspace = member.workspace
    if reading.get(workspace, wanted) is not None:
        yield Result(gettext("Request"), str(wanted), reverse("portal-request", args=[wanted]))
    if key := member.keys.filter(pk=wanted).first():
        yield Result(named(key), gettext("key"), reverse("portal-key", args=[wanted]))
    if Job.objects.filter(workspace=workspace, pk=wanted).exists():
        yield Result(gettext("Job"), str(wanted), reverse("portal-job", args=[wanted]))
    if hook := Webhook.objects.listed().filter(workspace=workspace, pk=wanted).first():
        yield Result(hook.url, gettext("webhook"), reverse("portal-webhook", args=[wanted]))
    deliveries = WebhookDelivery.objects.filter(
        Q(pk=wanted) | Q(event_id=wanted),
        webhook__workspace=workspace,
        webhook__deleted_at=None,
    )
    for delivery in deliveries[:RESULTS_MAX]:
        url = reverse("portal-delivery", args=[delivery.pk])
        label = gettext("Delivery of %(event)s") % {"event": delivery.event_type}
        yield Result(label, translated(delivery.status), url)
