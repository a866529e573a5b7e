"""Facts worth telling: the outbox for customers, the audit trail for operators.

Both rows join the caller's transaction: a fact that is rolled back is never told. Nothing here
sends anything; the webhooks app reads the outbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.utils import timezone

from accounts.models import AuditEvent, OutboxEvent, Workspace, new_id
from gateway_project.core.clock import utc_text


def publish(
    workspace: Workspace | UUID,
    event_type: str,
    *,
    result: dict[str, Any],
    metadata: dict[str, Any] | None = None,
    request_id: str | None = None,
    api_key_id: UUID | None = None,
    deliver_to: str = "",
) -> OutboxEvent:
    """Queue one event for whoever of `workspace` listens to it.

    Sending may happen twice; receivers dedupe by the event's id. `result` never holds the text.
    With `deliver_to`, an address that a request named, it goes there and nowhere else.
    """
    row = event(
        workspace.pk if isinstance(workspace, Workspace) else workspace,
        event_type,
        result=result,
        metadata=metadata,
        request_id=request_id,
        api_key_id=api_key_id,
        deliver_to=deliver_to,
    )
    row.save(force_insert=True)
    return row


def publish_all(events: Sequence[OutboxEvent]) -> None:
    """Queue many that `event` made."""
    OutboxEvent.objects.bulk_create(events, batch_size=500)


def event(
    workspace_id: UUID,
    event_type: str,
    *,
    result: dict[str, Any],
    metadata: dict[str, Any] | None = None,
    request_id: str | None = None,
    api_key_id: UUID | None = None,
    at: datetime | None = None,
    deliver_to: str = "",
) -> OutboxEvent:
    """One event, not stored yet. `at` (now) is when the fact happened."""
    event_id, now = new_id(), timezone.now()
    body: dict[str, Any] = {
        "id": str(event_id),
        "type": event_type,
        "timestamp": utc_text(at or now),
        "data": {"result": result, "metadata": metadata or {}},
    }
    if request_id is not None:
        body["request_id"] = request_id
    if api_key_id is not None:
        body["api_key_id"] = str(api_key_id)
    return OutboxEvent(
        id=event_id,
        workspace_id=workspace_id,
        type=event_type,
        body=body,
        deliver_to=deliver_to,
        created_at=now,
    )


def audit(
    action: str,
    *,
    actor: str,
    workspace: Workspace | None = None,
    target: object = "",
    client_ip: str | None = None,
    request_id: str = "",
    **details: Any,
) -> AuditEvent:
    """Write one line of the audit trail: `audit("key.revoked", actor="…", target=key.id)`."""
    return AuditEvent.objects.create(
        action=action,
        actor=actor,
        workspace=workspace,
        target=str(target),
        client_ip=client_ip or None,
        request_id=request_id,
        details=details,
    )
