"""What one request to a webhook needs, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from django.db.models import TextField
from django.db.models.functions import Cast

from gateway_project.core.stores.refused import UNFIT
from webhooks import keyring
from webhooks.models import Webhook, WebhookDelivery

TIMEOUT_SECONDS = 15.0
# The text as the database keeps it: the same bytes at each attempt, and never decoded.
BODY_TEXT = Cast("event__body", TextField())
WindowKey = tuple[UUID, str]
"""A webhook, and the lane of an address that a request named; `""`: the webhook's whole."""
Kind = Literal["delivered", "failed", "timeout", "error", "refused", "deferred"]
"""`deferred`: we could not even try. It is not held against the receiver."""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed delivery with all that sending it needs. `secrets`: the newest first."""

    delivery_id: UUID
    webhook_id: UUID
    workspace_id: UUID
    url: str
    event_id: str
    body: bytes
    secrets: tuple[str, ...]
    inbox_id: UUID | None  # then nothing is dialled
    is_active: bool
    is_suspended: bool  # its workspace
    is_failing: bool
    lane: str = ""  # of an address that a request named
    is_withheld: bool = False  # it is of the audit trail, and not asked for any more
    traceparent: str = ""  # of what the event tells


@dataclass(frozen=True, slots=True)
class Outcome:
    """`error` says in words why there is no status; `response_body` is cut."""

    at: datetime
    duration_ms: int
    kind: Kind
    http_status: int | None = None
    error: str = ""
    response_body: str = ""
    retry_after_seconds: float | None = None
    ended_at: datetime = datetime.min  # noqa: DTZ901 - always given

    @property
    def is_success(self) -> bool:
        return self.kind == "delivered"

    @property
    def is_overloaded(self) -> bool:
        return self.kind == "timeout" or self.http_status == 429

    @property
    def summary(self) -> str:
        return f"HTTP {self.http_status}" if self.http_status else self.error


def _no_job(delivery_id: UUID, error: Exception) -> None:
    raise error


def jobs_of(
    delivery_ids: Sequence[UUID], refuse: Callable[[UUID, Exception], object] = _no_job
) -> list[Job]:
    """What sending these deliveries needs. `refuse` is told of each that cannot be one, and why."""
    rows = list(
        WebhookDelivery.objects.filter(pk__in=delivery_ids)
        .order_by("created_at")
        .values_list(
            *("pk", "webhook_id", "event_id", "event__deliver_to", "lane"),
            *("event_type", "is_test", "event__traceparent", BODY_TEXT),
        )
    )
    ids = {webhook_id for _, webhook_id, *_ in rows}
    webhooks = {
        webhook.pk: (webhook, keyring.in_force(webhook))
        for webhook in Webhook.objects.filter(pk__in=ids)
        .select_related("workspace")
        .prefetch_related("secrets")
    }
    jobs = []
    for pk, webhook_id, event_id, deliver_to, lane, event_type, is_test, traceparent, body in rows:
        if webhook_id not in webhooks:  # it may have been deleted in between
            continue
        webhook, secrets = webhooks[webhook_id]
        try:
            jobs.append(
                Job(
                    delivery_id=pk,
                    webhook_id=webhook_id,
                    workspace_id=webhook.workspace_id,
                    url=deliver_to or webhook.url,
                    event_id=str(event_id),
                    body=body.encode(),
                    secrets=secrets,
                    inbox_id=webhook.inbox_id,
                    is_active=webhook.is_active,
                    is_suspended=webhook.workspace.suspended_at is not None,
                    is_failing=webhook.failing_since is not None,
                    lane=lane,
                    is_withheld=not is_test and webhook.withholds(event_type),
                    traceparent=traceparent,
                )
            )
        except UNFIT as exc:
            refuse(pk, exc)
    return jobs


def body_of(delivery_id: UUID) -> bytes:
    """The very bytes that are sent."""
    found = WebhookDelivery.objects.filter(pk=delivery_id)
    body: str = found.values_list(BODY_TEXT, flat=True).get()
    return body.encode()
