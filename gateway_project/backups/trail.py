"""When backups were made and tried: the audit trail keeps it."""

from __future__ import annotations

from datetime import datetime

from accounts.models import AuditEvent
from gateway_project.backups import ACTIONS, VERIFIED


def last_at() -> datetime | None:
    """Of the last one that was made or noted; None: none is known. By an index of the trail."""
    return _newest(*ACTIONS)


def last_tried_at() -> datetime | None:
    """Of the last one that was restored to try it."""
    return _newest(VERIFIED)


def _newest(*actions: str) -> datetime | None:
    found = [
        at
        for action in actions
        for at in AuditEvent.objects.filter(action=action)
        .order_by("-at")
        .values_list("at", flat=True)[:1]
    ]
    return max(found, default=None)
