"""Webhooks of a workspace: what they are, how they do, and what became of each delivery.

All is done by `webhooks.services`, as the API does it. Viewers look; `must_change` stops them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext, ngettext
from rest_framework.request import Request

from accounts import audit
from accounts.usage import reports
from gateway_project.core import clock, errors
from gateway_project.core.api.methods import require_http_methods, require_safe
from gateway_project.core.api.pagination import page
from gateway_project.core.clock import utc_text
from gateway_project.core.language import number
from gateway_project.core.storable import cleaned
from portal import exports, plots
from portal.clocks import in_query
from portal.labels import coded, fault
from portal.members import Member, secretly, shows_secrets, workspace_page
from portal.posting import is_first, posts_for, show_once, take_shown
from portal.webhook_forms import (
    DebugForm,
    DeliveryFilter,
    RecoverForm,
    RotateSecretForm,
    TestForm,
    WebhookEditForm,
    WebhookForm,
)
from webhooks import catalogue, services
from webhooks.delivery import attempt, callbacks, health
from webhooks.delivery.results import BODIES_KEPT
from webhooks.models import Webhook, WebhookDelivery
from webhooks.receiving import debugger

CHART = timedelta(hours=24)
STATES = ("delivered", "pending", "failed")


def _webhook(member: Member, webhook_id: UUID, *, is_any: bool = False) -> Webhook:
    """One of the member's workspace; another's is the same 404 as none.

    `is_any`: the one of addresses named in requests too, which has little to change.
    """
    found = Webhook.objects.filter(workspace=member.workspace, pk=webhook_id).first()
    if found is None or (found.is_per_request and not is_any):
        raise Http404
    found.workspace = member.workspace
    return found


def _delivery(member: Member, delivery_id: UUID) -> WebhookDelivery:
    found = (
        WebhookDelivery.objects.filter(
            pk=delivery_id, webhook__workspace=member.workspace, webhook__deleted_at=None
        )
        .select_related("event", "webhook")
        .first()
    )
    if found is None:
        raise Http404
    return found


def _try(request: HttpRequest, act: Callable[[], object], done: str) -> bool:
    """Do it and say so, or say why not."""
    try:
        act()
    except errors.GatewayError as exc:
        wrong = "; ".join(gettext(error["message"]) for error in getattr(exc, "errors", ()) or ())
        messages.error(request, wrong or exc.for_people())
        return False
    messages.success(request, done)
    return True


def _plots(webhooks: Sequence[Webhook]) -> dict[UUID, plots.Plot]:
    since = reports.floor(clock.now() - CHART, "hour")
    series = health.by_hour([webhook.pk for webhook in webhooks], since)
    times = plots.buckets(since, clock.now(), "hour")
    return {
        webhook.pk: plots.deliveries_plot(
            times, series.get(webhook.pk, {}), "hour", _to_the_log(webhook)
        )
        for webhook in webhooks
    }


def _to_the_log(webhook: Webhook) -> plots.Link:
    page = _address_of(webhook)

    def link(begin: datetime, end: datetime) -> str:
        return f"{page}?{urlencode({'since': in_query(begin), 'until': in_query(end)})}#log"

    return link


@require_http_methods(["GET", "HEAD", "POST"])
@shows_secrets
@workspace_page
def webhooks(request: HttpRequest, member: Member) -> HttpResponseBase:
    """List them, and make one: its page shows the secret, once."""
    form = WebhookForm(
        request.POST if request.method == "POST" else None,
        is_robins=member.workspace.is_robin_operator,
        can_audit=member.can_audit,
    )
    if request.method == "POST":
        member.must_change()
        if form.is_valid():
            if not is_first(request):
                return redirect("portal-webhooks")
            try:
                webhook, secret = services.register(
                    member.workspace.pk, actor=member.actor(request), **form.cleaned_data
                )
            except errors.Conflict as exc:
                form.add_error(None, exc.for_people())
            else:
                show_once(request, webhook.pk, secret=secret)
                return redirect("portal-webhook", webhook_id=webhook.pk)
    found = list(Webhook.objects.listed().filter(workspace=member.workspace))
    counts, drawn = services.counts_of(found), _plots(found)
    rows = [(webhook, counts.get(webhook.pk, {}), drawn[webhook.pk]) for webhook in found]
    facts = {
        "member": member,
        "rows": rows,
        "form": form,
        "examples": [
            (
                event.name,
                coded(gettext(event.description)),
                json.dumps(catalogue.example_of(event), indent=2),
            )
            for event in catalogue.TYPES
            if member.workspace.is_robin_operator or not event.name.startswith("queue.")
        ],
    }
    files = {
        "webhooks": lambda: _table(found, counts),
        "by-hour": lambda: _by_hour([(webhook, plot) for webhook, _, plot in rows]),
    }
    return exports.page(request, "portal/pages/webhooks.html", facts, files)


def _table(found: Sequence[Webhook], counts: Mapping[UUID, Mapping[str, int]]) -> exports.Table:
    columns = ("id", "url", "events", "is_active", "created_at", *STATES)
    return exports.Table(
        columns,
        [
            [
                *(one.pk, one.url, one.events, one.is_active, one.created_at),
                *(counts.get(one.pk, {}).get(name, 0) for name in STATES),
            ]
            for one in found
        ],
    )


def _by_hour(drawn: Sequence[tuple[Webhook, plots.Plot]]) -> exports.Table:
    """All of the list's charts."""
    cells = [(one.pk, one.url, *row) for one, plot in drawn for row in plot.rows_of_file]
    return exports.Table(("id", "url", "from", *STATES), cells)


def _log(rows: Iterable[WebhookDelivery]) -> exports.Table:
    columns = (
        *("id", "created_at", "event", "is_test", "url", "state", "attempts", "http_status"),
        *("error", "next_attempt_at"),
    )
    return exports.Table(
        columns,
        (
            [
                *(row.pk, row.created_at, row.event_type, row.is_test, row.url),
                *(row.status, row.attempts_made, row.http_status, row.error),
                row.next_attempt_at,
            ]
            for row in rows
        ),
    )


@require_safe
@workspace_page
def webhook(request: HttpRequest, member: Member, webhook_id: UUID) -> HttpResponseBase:
    return _page(request, member, _webhook(member, webhook_id, is_any=True))


@require_safe
@workspace_page
def per_request(request: HttpRequest, member: Member) -> HttpResponseBase:
    """The webhook of addresses named in requests, made when somebody first looks for it."""
    return _page(request, member, callbacks.of(member.workspace.pk))


def _page(request: HttpRequest, member: Member, found: Webhook, **more: Any) -> HttpResponseBase:
    """The page of one webhook, with its log. `more` replaces forms that were filled in wrongly."""
    form = DeliveryFilter(request.GET)
    rows: list[WebhookDelivery] = []
    older = None
    log = found.deliveries.none()
    if form.is_valid():
        conditions = form.conditions()
        of_time = {name: at for name, at in conditions.items() if name.startswith("created_at")}
        among = found.deliveries.filter(**of_time)
        log = among.filter(**conditions).select_related("event", "webhook").defer("event__body")
        try:
            rows, older = page(Request(request), log, ordering=("-created_at", "-id"), among=among)
        except errors.NotFound:
            raise Http404 from None
    now = clock.now()
    secrets = list(found.secrets.values_list("created_at", "expires_at"))
    shown = {} if exports.NAME in request.GET else take_shown(request, found.pk)
    plot = _plots([found])[found.pk]
    facts = {
        "member": member,
        "webhook": found,
        "counts": services.counts_of([found]).get(found.pk, {}),
        "plot": plot,
        "old_secrets": [(made, end) for made, end in secrets if end is not None and end > now],
        "form": form,
        "rows": rows,
        "older": older,
        "is_filtered": any(request.GET.get(name) for name in form.fields),
        "has_cursor": "cursor" in request.GET,
        "last_error": _last_error(found) if found.failing_since else "",
        "rotate_form": RotateSecretForm(),
        "test_form": TestForm(),
        "recover_form": RecoverForm(initial={"since": _troubled_since(found)}),
        **({"made": found} if shown else {}),
        **shown,
        **more,
    }
    files = {**plots.files(plot), "log": lambda: _log(exports.newest_first(log))}
    answer = exports.page(request, "portal/pages/webhook.html", facts, files)
    return secretly(answer) if shown else answer


def _address_of(found: Webhook) -> str:
    if found.is_per_request:
        return reverse("portal-webhook-per-request")
    return reverse("portal-webhook", kwargs={"webhook_id": found.pk})


def _last_error(webhook: Webhook) -> str:
    last = (
        WebhookDelivery.objects.filter(webhook=webhook, attempts_made__gt=0)
        .order_by("-created_at", "-id")
        .only("http_status", "error")
        .first()
    )
    if last is None:
        return ""
    return fault(last.error) or (f"HTTP {last.http_status}" if last.http_status else "")


def _troubled_since(webhook: Webhook) -> datetime:
    return webhook.failing_since or clock.now() - timedelta(days=1)


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def edit(request: HttpRequest, member: Member, webhook_id: UUID) -> HttpResponse:
    member.must_change()
    found = _webhook(member, webhook_id)
    if audit.RECORDED in found.events:
        member.must("audit")  # another address would get it
    form = WebhookEditForm(
        found,
        request.POST if request.method == "POST" else None,
        is_robins=member.workspace.is_robin_operator,
        can_audit=member.can_audit,
    )
    if request.method == "POST" and form.is_valid():
        if changes := form.changes():
            services.update(found, changes, can_audit=member.can_audit, actor=member.actor(request))
        messages.success(request, gettext("Saved."))
        return redirect("portal-webhook", webhook_id=found.pk)
    facts = {"member": member, "webhook": found, "form": form}
    return render(request, "portal/pages/webhook_edit.html", facts)


@posts_for("portal-webhook")
@workspace_page
def switch(request: HttpRequest, member: Member, webhook_id: UUID) -> HttpResponse:
    """Pause it, or enable it again, which takes as long as its answer to the probe."""
    member.must_change()
    found, actor = _webhook(member, webhook_id), member.actor(request)
    if request.POST.get("to") == "on":
        if found.is_active:
            messages.info(request, gettext("It is enabled already."))
        else:
            text = gettext(
                "It answered the probe with 2xx: enabled. What was missed can be recovered."
            )
            _try(request, lambda: services.enable(found, actor=actor), text)
    elif found.is_active:
        text = gettext("Paused. What was on its way has failed, and can be recovered.")
        _try(request, lambda: services.update(found, {"is_active": False}, actor=actor), text)
    return redirect("portal-webhook", webhook_id=found.pk)


@posts_for("portal-webhook")
@shows_secrets
@workspace_page
def rotate_secret(request: HttpRequest, member: Member, webhook_id: UUID) -> HttpResponseBase:
    member.must_change()
    found, form = _webhook(member, webhook_id, is_any=True), RotateSecretForm(request.POST)
    if not form.is_valid():
        return _page(request, member, found, rotate_form=form)
    if not is_first(request):  # the secret that the first one made is about to be shown
        return redirect(_address_of(found))
    secret, until = services.rotate_secret(
        found,
        overlap_seconds=form.cleaned_data["overlap_seconds"],
        actor=member.actor(request),
    )
    show_once(request, found.pk, secret=secret, until=utc_text(until))
    return redirect(_address_of(found))


@posts_for("portal-webhook")
@workspace_page
def test(request: HttpRequest, member: Member, webhook_id: UUID) -> HttpResponseBase:
    member.must_change()
    found, form = _webhook(member, webhook_id), TestForm(request.POST)
    if not form.is_valid():
        return _page(request, member, found, test_form=form)
    if not is_first(request):
        return redirect("portal-webhook", webhook_id=found.pk)
    made: list[WebhookDelivery] = []

    def send() -> None:
        services.check_address(found)
        made.append(services.test(found, form.cleaned_data["event"]))

    is_sent = _try(request, send, gettext("The test is on its way."))
    if request.POST.get("back") == "inbox":
        return redirect("portal-inbox")
    if is_sent:
        return redirect("portal-delivery", delivery_id=made[0].pk)
    return redirect("portal-webhook", webhook_id=found.pk)


@posts_for("portal-webhook")
@workspace_page
def recover(request: HttpRequest, member: Member, webhook_id: UUID) -> HttpResponseBase:
    member.must_change()
    found, form = _webhook(member, webhook_id, is_any=True), RecoverForm(request.POST)
    if not form.is_valid():
        return _page(request, member, found, recover_form=form)
    try:
        count, is_complete = services.recover(
            found, **form.cleaned_data, actor=member.actor(request)
        )
    except errors.GatewayError as exc:
        messages.error(request, exc.for_people())
    else:
        text = gettext("Nothing was missed.")
        if count:
            text = ngettext(
                "%(number)s delivery is on its way again.",
                "%(number)s deliveries are on their way again.",
                count,
            ) % {"number": number(count)}
        if not is_complete:
            text += " " + gettext("There are more: recover once more when these have arrived.")
        messages.success(request, text)
    return redirect("portal-webhook", webhook_id=found.pk)


@posts_for("portal-webhook")
@workspace_page
def delete(request: HttpRequest, member: Member, webhook_id: UUID) -> HttpResponse:
    member.must_change()
    found = _webhook(member, webhook_id)
    services.delete(found, actor=member.actor(request))
    messages.success(request, gettext("The webhook is deleted, with its log."))
    return redirect("portal-webhooks")


@require_safe
@workspace_page
def delivery(request: HttpRequest, member: Member, delivery_id: UUID) -> HttpResponse:
    """What was sent and what came back; asked for again while it is on its way."""
    found = _delivery(member, delivery_id)
    is_pending = found.status == WebhookDelivery.Status.PENDING
    may_read = member.can_audit or found.event_type != audit.RECORDED
    facts = {
        "member": member,
        "delivery": found,
        "webhook": found.webhook,
        "attempts": [
            (attempt, int(attempt.at.timestamp())) for attempt in found.attempts.order_by("-id")
        ],
        "bodies_kept": BODIES_KEPT,
        "body": attempt.body_of(found.pk).decode() if may_read else "",
        "may_read": may_read,
        "is_live": is_pending and found.attempts_made == 0,
    }
    if request.headers.get("HX-Request"):
        return render(request, "portal/pages/delivery_state.html", facts)
    return render(request, "portal/pages/delivery.html", facts)


@posts_for("portal-delivery")
@workspace_page
def resend(request: HttpRequest, member: Member, delivery_id: UUID) -> HttpResponse:
    member.must_change()
    found = _delivery(member, delivery_id)
    if not is_first(request):
        return redirect("portal-delivery", delivery_id=found.pk)
    _try(
        request,
        lambda: services.resend(found, actor=member.actor(request)),
        gettext("It is on its way again, with the same webhook-id."),
    )
    return redirect("portal-delivery", delivery_id=found.pk)


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def debug(request: HttpRequest, member: Member, webhook_id: UUID) -> HttpResponse:
    """The signature debugger: nothing pasted is stored. Viewers may: it changes nothing."""
    found = _webhook(member, webhook_id, is_any=True)
    form = DebugForm(request.POST if request.method == "POST" else None)
    verdict: debugger.Verdict | None = None
    if request.method == "POST" and form.is_valid():
        pasted = form.cleaned_data
        verdict = services.examine(
            found, pasted["headers"], pasted["body"], receivers_secret=pasted["secret"]
        )
    facts = {
        "member": member,
        "webhook": found,
        "form": form,
        "verdict": verdict,
        # They quote what was pasted, and JSON spells what is no text: `"\\ud800"`.
        "findings": [(one.tone, cleaned(one.message)) for one in verdict.findings]
        if verdict
        else (),
    }
    return render(request, "portal/pages/debugger.html", facts)
