"""Facts worth telling: the outbox for customers, the audit trail for operators.

Both rows join the caller's transaction: a fact that is rolled back is never told. Nothing here
sends anything; the webhooks app reads the outbox, and hears of what was committed by `published`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import orjson
from django.db import connection, transaction
from django.db.models import Model
from django.dispatch import Signal

from accounts.models import AuditEvent, OutboxEvent, Workspace
from gateway_project.core import clock
from gateway_project.core.clock import utc_text
from gateway_project.core.context import current
from gateway_project.core.storable import cleaned, unstorable
from gateway_project.core.stores.bulk import copy_in

ACTOR_CHARS_MAX = AuditEvent._meta.get_field("actor").max_length
TARGET_CHARS_MAX = AuditEvent._meta.get_field("target").max_length
published = Signal()
"""Sent in the process that wrote events to the outbox, once they are committed."""


def publish(
    workspace: Workspace | UUID,
    event_type: str,
    *,
    result: dict[str, Any],
    metadata: dict[str, Any] | None = None,
    request_id: str | None = None,
    api_key_id: UUID | None = None,
    deliver_to: str = "",
    traceparent: str | None = None,
) -> OutboxEvent:
    """Queue one event for whoever of `workspace` listens to it.

    Sending may happen twice; receivers dedupe by the event's id. `result` never holds the text.
    With `deliver_to`, an address that a request named, it goes there and nowhere else.
    """
    new = event(
        workspace.pk if isinstance(workspace, Workspace) else workspace,
        event_type,
        result=result,
        metadata=metadata,
        request_id=request_id,
        api_key_id=api_key_id,
        deliver_to=deliver_to,
        traceparent=traceparent,
    )
    row = OutboxEvent(**new._replace(id=UUID(str(new.id)))._asdict())
    row.save(force_insert=True)
    _tell_when_committed()
    return row


def _tell_when_committed() -> None:
    # Robust: what listeners do wrong must not undo, or seem to undo, what is committed.
    transaction.on_commit(lambda: published.send_robust(None), robust=True)


class NewEvent(NamedTuple):
    """A row of the outbox, by column; as a model it would cost more than the rest of it."""

    id: UUID | str
    workspace_id: UUID | str
    type: str
    body: dict[str, Any]
    deliver_to: str
    created_at: datetime
    traceparent: str


def publish_all(events: Sequence[NewEvent]) -> None:
    """Queue many that `event` made."""
    if not events:
        return
    if connection.vendor != "postgresql":
        OutboxEvent.objects.bulk_create(
            [OutboxEvent(**new._asdict()) for new in events], batch_size=500
        )
    else:
        copy_in(
            OutboxEvent._meta.db_table,
            NewEvent._fields,
            ((*new[:3], orjson.dumps(new.body).decode(), *new[4:]) for new in events),
        )
    _tell_when_committed()


def event(
    workspace_id: UUID | str,
    event_type: str,
    *,
    result: dict[str, Any],
    metadata: dict[str, Any] | None = None,
    request_id: str | None = None,
    api_key_id: UUID | str | None = None,
    at: datetime | None = None,
    deliver_to: str = "",
    traceparent: str | None = None,
) -> NewEvent:
    """One event, not stored yet. `at` (now) is when the fact happened. Ids may be texts.

    `traceparent` is of whoever caused it: None, the request or task in hand.
    """
    event_id, now = str(clock.new_id()), clock.now()
    body: dict[str, Any] = {
        "id": event_id,
        "type": event_type,
        "timestamp": utc_text(at or now),
        "data": {"result": result, "metadata": metadata or {}},
    }
    if request_id is not None:
        body["request_id"] = request_id
    if api_key_id is not None:
        body["api_key_id"] = str(api_key_id)
    if traceparent is None:
        context = current.get()
        traceparent = (context and context.traceparent) or ""
    return NewEvent(event_id, workspace_id, event_type, body, deliver_to, now, traceparent)


def changes_of(row: Model, changes: Mapping[str, Any]) -> dict[str, list[Any]]:
    """`{field: [before, after]}` of those `changes` that are any, as the audit trail takes them.

    Ask before they are made.
    """
    return {
        field: [_plain(getattr(row, field), field), _plain(value, field)]
        for field, value in changes.items()
        if getattr(row, field) != value
    }


def address_without_secrets(url: str) -> str:
    """A receiver's address as it may be told: a query or a name before @ may hold a token."""
    parts = urlsplit(url)
    more = "?…" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{more}"


def _plain(value: Any, field: str) -> Any:
    if field == "url":
        return address_without_secrets(value)
    if isinstance(value, datetime):
        return utc_text(value)
    return value if isinstance(value, bool | int | float | list | None) else str(value)


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
    """Write one line of the audit trail: `audit("key.revoked", actor="…", target=key.id)`.

    Names are cut to what the table takes: an act must not fail over its own note.
    """
    return AuditEvent.objects.create(
        action=action,
        actor=cleaned(actor)[:ACTOR_CHARS_MAX],
        workspace=workspace,
        target=cleaned(str(target))[:TARGET_CHARS_MAX],
        client_ip=client_ip or None,
        request_id=request_id,
        details=details if (wrong := unstorable(details)) is None else {"left out": wrong},
    )
