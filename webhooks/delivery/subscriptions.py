"""Who listens: what a workspace's webhooks ask for, and how one stops listening.

`Workspace.wanted_events` repeats what its active webhooks ask for, because the makers of events
(the usage writer, the key cache) know nothing of webhooks. Whoever changes one of them calls `tell`
in the same transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from accounts import authentication
from accounts.events import audit
from accounts.models import ApiKey, Workspace
from gateway_project.core.telemetry.logging import get_logger
from webhooks.models import Webhook, WebhookDelivery, WebhookNotice

CLOSED_AT_ONCE = 5_000
Status = WebhookDelivery.Status
log = get_logger("gateway.webhooks")


def locked(workspace_id: UUID) -> Workspace:
    """The workspace, so that two changes at once do not each tell what they alone saw."""
    return Workspace.objects.select_for_update().get(pk=workspace_id)


def tell(workspace: Workspace) -> None:
    """Write what the active webhooks ask for to the workspace."""
    asked = Webhook.objects.filter(workspace=workspace, is_active=True)
    wanted = sorted({name for events in asked.values_list("events", flat=True) for name in events})
    if wanted == workspace.wanted_events:
        return
    Workspace.objects.filter(pk=workspace.pk).update(wanted_events=wanted)
    for key_id in ApiKey.objects.usable().filter(workspace=workspace).values_list("pk", flat=True):
        authentication.forget(key_id)


def disable(webhook_id: UUID, reason: Webhook.DisabledReason, facts: dict[str, Any]) -> None:
    """Send it nothing more, and have its owners told why. Once is enough."""
    with transaction.atomic():
        webhook = Webhook.objects.filter(pk=webhook_id).first()
        if webhook is None:
            return
        workspace = locked(webhook.workspace_id)
        webhook = Webhook.objects.select_for_update().filter(pk=webhook_id, is_active=True).first()
        if webhook is None:
            return
        close_pending([webhook_id], "the webhook was disabled")
        webhook.is_active, webhook.disabled_reason = False, reason
        webhook.save(update_fields=["is_active", "disabled_reason"])
        tell(workspace)
        WebhookNotice.objects.create(
            webhook=webhook, kind=WebhookNotice.Kind.DISABLED, facts={"reason": reason, **facts}
        )
        audit("webhook.disabled", actor="gateway", workspace=workspace, target=webhook.pk, **facts)
    log.warning("webhook_disabled", webhook=str(webhook_id), reason=str(reason))


def close_pending(webhook_ids: Iterable[UUID], why: str) -> None:
    """Give up what is on its way there; `recover` brings it back."""
    asked = list(webhook_ids)
    with transaction.atomic():
        while True:  # a backlog may be millions
            # In order, so that no two writers wait for each other.
            ids = list(
                WebhookDelivery.objects.select_for_update()
                .filter(webhook__in=asked, status=Status.PENDING)
                .order_by("pk")
                .values_list("pk", flat=True)[:CLOSED_AT_ONCE]
            )
            if not ids:
                return
            WebhookDelivery.objects.filter(pk__in=ids).update(
                status=Status.FAILED,
                error=why,
                next_attempt_at=None,
                is_claimed=False,
                finished_at=timezone.now(),
            )
