"""Staff's view of webhooks and deliveries. Secrets are nowhere in it; acts are the owners' own."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.admin.actions import act
from accounts.admin.lists import Choice, SuperusersAct, as_uuid, link_to
from accounts.models import Workspace
from accounts.services import Actor
from webhooks import services
from webhooks.models import Webhook, WebhookAttempt, WebhookDelivery

ATTEMPTS_SHOWN = 50
BODY_CHARS_SHOWN = 500
LATEST_SHOWN = 20


def disable(webhook: Webhook, *, actor: Actor) -> bool:
    if not webhook.is_active or webhook.is_per_request:
        return False
    services.update(webhook, {"is_active": False}, actor=actor)
    return True


class WebhookState(Choice):
    title = _("state")
    parameter_name = "state"
    options = {
        "active": (_("Active"), {"is_active": True}),
        "disabled": (_("Disabled"), {"is_active": False}),
        "failing": (_("Failing"), {"failing_since__isnull": False}),
    }


class Shown(SuperusersAct):
    """All fields are only read, and none is made here: a secret would reach the wrong person."""

    def get_fields(self, request: Any, obj: Any = None) -> list[Any]:
        return list(self.readonly_fields)

    def has_add_permission(self, request: Any, obj: Any = None) -> bool:
        return False


@admin.register(Webhook)
class WebhookAdmin(Shown):
    """What a webhook is stays its owners': staff stop it, and only they start it again."""

    list_display = ["__str__", "workspace", "is_active", "disabled_reason", "failing_since"]
    list_filter = [WebhookState]
    list_select_related = ["workspace"]
    search_help_text = _("A workspace's slug, or the id of a webhook or workspace.")
    readonly_fields = [
        *("workspace", "url", "is_per_request", "description", "events", "retry_count"),
        *("is_active", "disabled_reason", "failing_since", "created_at", "latest"),
    ]
    actions = [
        act(
            "disable",
            _("Disable"),
            means=_(
                "Nothing more is sent there, and what waits is given up. Its owners can enable it "
                "again, which sends a probe."
            ),
            run=disable,
            is_grave=True,
            # Nobody could enable the one of requests again, for it has no address to probe.
            applies=lambda webhook: webhook.is_active and not webhook.is_per_request,
        )
    ]

    def find(self, queryset: QuerySet[Webhook], term: str) -> QuerySet[Webhook]:
        wanted = as_uuid(term)
        if wanted is None:
            return queryset.filter(workspace__in=Workspace.objects.filter(slug=term.lower()))
        return queryset.filter(pk=wanted) | queryset.filter(workspace=wanted)

    @admin.display(description=_("latest deliveries"))
    def latest(self, webhook: Webhook) -> str:
        rows = webhook.deliveries.order_by("-created_at")[:LATEST_SHOWN]
        lines = (
            (f"{row.created_at:%Y-%m-%d %H:%M:%S}", link_to(row, row.event_type), row.status)
            for row in rows
        )
        return format_html_join(mark_safe("<br>"), "{} {}: {}", lines) or gettext("none")


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(Shown):
    list_display = ["at", "event_type", "status", "http_status", "attempts_made", "webhook"]
    list_select_related = ["webhook"]
    search_help_text = _("The id of a delivery, of a webhook, or of an event.")
    readonly_fields = [
        *(
            "webhook",
            "url",
            "event_type",
            "status",
            "http_status",
            "error",
            "attempts_made",
            "is_test",
        ),
        *("created_at", "next_attempt_at", "finished_at", "attempts"),
    ]
    actions = [
        act(
            "resend",
            _("Send again"),
            means=_(
                "Each is sent anew, now, whatever became of it before. Receivers may get an event "
                "twice; its id is the same."
            ),
            run=services.resend,
        )
    ]

    def find(self, queryset: QuerySet[WebhookDelivery], term: str) -> QuerySet[WebhookDelivery]:
        wanted = as_uuid(term)
        if wanted is None:
            return queryset.none()
        if WebhookDelivery.objects.filter(pk=wanted).exists():
            return queryset.filter(pk=wanted)
        if Webhook.objects.filter(pk=wanted).exists():
            return queryset.filter(webhook=wanted)
        return queryset.filter(event=wanted)

    @admin.display(description=_("at (UTC)"))
    def at(self, delivery: WebhookDelivery) -> str:
        return f"{delivery.created_at:%Y-%m-%d %H:%M:%S}"

    @admin.display(description=_("attempts"))
    def attempts(self, delivery: WebhookDelivery) -> str:
        found = WebhookAttempt.objects.filter(delivery=delivery).order_by("-id")[:ATTEMPTS_SHOWN]
        lines = (
            (
                f"{attempt.at:%Y-%m-%d %H:%M:%S}",
                attempt.http_status or attempt.error,
                attempt.duration_ms,
                attempt.response_body[:BODY_CHARS_SHOWN],
            )
            for attempt in found
        )
        return format_html_join(mark_safe("<br>"), "{}: {} ({} ms) {}", lines) or gettext(
            "none yet"
        )
