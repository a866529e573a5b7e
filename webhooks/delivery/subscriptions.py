"""Who listens: what a workspace's webhooks ask for, and how one stops listening.

`Workspace.wanted_events` repeats what its active webhooks ask for, because the makers of events
(the usage writer, the key cache) know nothing of webhooks. Whoever changes one of them calls `tell`
in the same transaction.
"""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

from django.db import InterfaceError, OperationalError, transaction
from django.utils.translation import gettext_noop

from accounts import authentication
from accounts.events import audit
from accounts.models import Workspace
from gateway_project.core import clock
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger
from webhooks.models import Webhook, WebhookDelivery, WebhookNotice

CLOSED_FIRST = 200
Status = WebhookDelivery.Status
log = get_logger("gateway.webhooks")


def locked(workspace_id: UUID) -> Workspace:
    """The workspace, so that two changes at once do not each tell what they alone saw.

    Its key is not locked: whatever refers to the workspace can be written meanwhile.
    """
    return Workspace.objects.select_for_update(no_key=True).get(pk=workspace_id)


def tell(workspace: Workspace) -> None:
    """Write what the active webhooks ask for to the workspace."""
    asked = Webhook.objects.filter(workspace=workspace, is_active=True)
    wanted = sorted({name for events in asked.values_list("events", flat=True) for name in events})
    if wanted == workspace.wanted_events:
        return
    Workspace.objects.filter(pk=workspace.pk).update(wanted_events=wanted)
    authentication.forget_workspace(workspace.pk)


def disable(webhook_id: UUID, reason: Webhook.DisabledReason, facts: dict[str, Any]) -> None:
    """Send it nothing more, and have its owners told why. Once is enough."""
    with transaction.atomic():
        webhook = Webhook.objects.filter(pk=webhook_id).first()
        if webhook is None:
            return
        workspace = locked(webhook.workspace_id)
        webhook = (
            Webhook.objects.select_for_update(no_key=True)
            .filter(pk=webhook_id, is_active=True)
            .first()
        )
        if webhook is None:
            return
        webhook.is_active, webhook.disabled_reason = False, reason
        webhook.is_closing = True
        webhook.save(update_fields=["is_active", "disabled_reason", "is_closing"])
        tell(workspace)
        WebhookNotice.objects.create(
            webhook=webhook, kind=WebhookNotice.Kind.DISABLED, facts={"reason": reason, **facts}
        )
        audit("webhook.disabled", actor="gateway", workspace=workspace, target=webhook.pk, **facts)
    close_first(webhook_id)
    log.warning("webhook_disabled", webhook=str(webhook_id), reason=str(reason))


def close_first(webhook_id: UUID) -> None:
    """Give up the first of what is on its way there, mostly all; `close_pending` does the rest.

    It is stopped already, so nobody is told when the database does not take this as well.
    """
    try:
        webhook = Webhook._base_manager.select_related("workspace").get(pk=webhook_id)
        _close(webhook, CLOSED_FIRST)
    except (OperationalError, InterfaceError) as exc:
        log.info("deliveries_left_open", webhook=str(webhook_id), error=type(exc).__name__)


def close_pending() -> int:
    """Give up what is on its way to webhooks that are sent nothing more; `recover` brings it back.

    In pieces, for a backlog may be millions; returns how many.
    """
    closed, during = 0, Round()
    closing = Webhook._base_manager.filter(is_closing=True).select_related("workspace")
    for webhook in closing.order_by("pk"):
        if not (webhook.is_active and webhook.workspace.suspended_at is None):
            closed += during.repeat(partial(_close, webhook))
        if during.is_over:
            break
        Webhook._base_manager.filter(pk=webhook.pk).update(is_closing=False)
    return closed


def _close(webhook: Webhook, size: int) -> int:
    pending = WebhookDelivery.objects.filter(webhook=webhook, status=Status.PENDING)
    with transaction.atomic():
        # What somebody writes a result of is left: so neither waits for the other.
        ids = list(
            pending.select_for_update(no_key=True, skip_locked=True)
            .order_by("webhook_id", "next_attempt_at")
            .values_list("pk", flat=True)[:size]
        )
        return WebhookDelivery.objects.filter(pk__in=ids).update(
            status=Status.FAILED,
            error=_why_closed(webhook),
            next_attempt_at=None,
            is_claimed=False,
            finished_at=clock.now(),
        )


def _why_closed(webhook: Webhook) -> str:
    if webhook.workspace.suspended_at is not None:
        return gettext_noop("the workspace is suspended")
    is_paused = webhook.disabled_reason == Webhook.DisabledReason.PAUSED
    return (
        gettext_noop("the webhook was paused")
        if is_paused
        else gettext_noop("the webhook was disabled")
    )
