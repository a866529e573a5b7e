"""From a fact to deliveries that are due, and from those to jobs: the two steps of the database.

Both may run in any number of workers at once: rows are locked with SKIP LOCKED on PostgreSQL; on
SQLite transactions exclude each other. What is taken is committed before anything is sent, and a
worker that dies holds it no longer than `LEASE`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

from django.db import transaction
from django.db.models import Min
from django.utils import timezone

from accounts.models import OutboxEvent
from webhooks.delivery import callbacks, sending, subscriptions
from webhooks.delivery.schedule import steps_max
from webhooks.delivery.sending import WindowKey
from webhooks.models import Webhook, WebhookDelivery

EVENTS_AT_ONCE = 500
CANDIDATES_PER_PLACE = 4
CALLBACKS_MAX = 128
"""Of all addresses that requests of one workspace name, in flight at once in a process."""
LEASE = timedelta(seconds=60)
"""Longer than a request may take and its result needs to be written."""
PRUNED_AT_ONCE = 5_000


def fan_out() -> int:
    """Make a delivery of each waiting event for each webhook that wants it; returns the events.

    An event for an address that a request named has one delivery, whoever listens.
    """
    waiting = OutboxEvent.objects.filter(published_at=None)
    if not waiting.exists():
        return 0  # without a transaction: SQLite's would keep writers out
    with transaction.atomic():
        events = list(
            waiting.select_for_update(skip_locked=True)
            .order_by("created_at")
            .values_list("pk", "workspace_id", "type", "deliver_to")[:EVENTS_AT_ONCE]
        )
        _make_callbacks({workspace_id for _, workspace_id, _, url in events if url})
        active: dict[UUID, list[Webhook]] = defaultdict(list)
        for webhook in Webhook.objects.filter(
            workspace__in={workspace_id for _, workspace_id, *_ in events},
            workspace__suspended_at=None,
            is_active=True,
        ):
            active[webhook.workspace_id].append(webhook)
        WebhookDelivery.objects.bulk_create(
            [
                WebhookDelivery(
                    webhook=webhook,
                    event_id=event_id,
                    event_type=kind,
                    lane=callbacks.lane_of(url),
                    steps_max=steps_max(webhook.retry_count),
                )
                for event_id, workspace_id, kind, url in events
                for webhook in active[workspace_id]
                if (webhook.is_per_request if url else kind in webhook.events)
            ],
            batch_size=1000,
        )
        OutboxEvent.objects.filter(pk__in=[event_id for event_id, *_ in events]).update(
            published_at=timezone.now()
        )
    return len(events)


def _make_callbacks(workspace_ids: set[UUID]) -> None:
    made = Webhook.objects.filter(workspace__in=workspace_ids, is_per_request=True)
    missing = workspace_ids - set(made.values_list("workspace_id", flat=True))
    for workspace_id in sorted(missing):  # in order, so that no two wait for each other
        callbacks.of(workspace_id)


def claim(
    places: int,
    room: Mapping[WindowKey, int],
    room_default: int,
    callbacks_default: int = CALLBACKS_MAX,
) -> list[sending.Job]:
    """Take up to `places` due deliveries, and of each webhook no more than it has room for.

    What has no room is not even looked at, so its backlog hides nobody else's deliveries. Of the
    addresses that requests name each has its lane with room of its own, and all of a workspace
    have together what the webhook itself has: `callbacks_default` until `room` says.
    """
    now = timezone.now()
    due = WebhookDelivery.objects.filter(
        status=WebhookDelivery.Status.PENDING, next_attempt_at__lte=now
    )
    full: dict[UUID, list[str]] = defaultdict(list)
    for (webhook_id, lane), left in room.items():
        if left <= 0:
            full[webhook_id].append(lane)
    due = due.exclude(webhook_id__in=[webhook for webhook, lanes in full.items() if "" in lanes])
    for webhook_id, lanes in full.items():
        if "" not in lanes:
            due = due.exclude(webhook_id=webhook_id, lane__in=lanes)
    if places <= 0 or not due.exists():
        return []
    with transaction.atomic():
        candidates = list(
            due.select_for_update(skip_locked=True, of=("self",))
            .order_by("next_attempt_at")
            .values_list("pk", "webhook_id", "lane")[: places * CANDIDATES_PER_PLACE]
        )
        taken: list[UUID] = []
        begun: dict[WindowKey, int] = defaultdict(int)
        for pk, webhook_id, lane in candidates:
            whole, own = (webhook_id, ""), (webhook_id, lane)
            most = room.get(whole, callbacks_default if lane else room_default)
            if len(taken) < places and begun[whole] < most:
                if lane:
                    if begun[own] >= room.get(own, room_default):
                        continue
                    begun[own] += 1
                begun[whole] += 1
                taken.append(pk)
        WebhookDelivery.objects.filter(pk__in=taken).update(
            next_attempt_at=now + LEASE, is_claimed=True
        )
    jobs = sending.jobs_of(taken)
    # Between the event and now. `recover` brings either back.
    suspended = {job.webhook_id for job in jobs if job.is_suspended}
    disabled = {job.webhook_id for job in jobs if not job.is_active} - suspended
    if suspended:
        subscriptions.close_pending(suspended, "the workspace is suspended")
    if disabled:
        subscriptions.close_pending(disabled, "the webhook is disabled")
    return [job for job in jobs if job.is_active and not job.is_suspended]


def oldest_pending_seconds() -> float:
    """How long the oldest event or delivery that is due has been waiting; 0 when none is."""
    now = timezone.now()
    due = WebhookDelivery.objects.filter(
        status=WebhookDelivery.Status.PENDING, next_attempt_at__lte=now
    )
    since = [
        due.aggregate(at=Min("next_attempt_at"))["at"],
        OutboxEvent.objects.filter(published_at=None).aggregate(at=Min("created_at"))["at"],
    ]
    return max([(now - at).total_seconds() for at in since if at is not None], default=0.0)


def prune(before_days: int) -> int:
    """Drop events that are older, with their log; those that are still on their way stay."""
    before = timezone.now() - timedelta(days=before_days)
    pending = WebhookDelivery.objects.filter(status=WebhookDelivery.Status.PENDING)
    dropped = 0
    while True:
        old = list(
            OutboxEvent.objects.filter(created_at__lt=before, published_at__isnull=False)
            .exclude(pk__in=pending.values("event_id"))
            .order_by("created_at")
            .values_list("pk", flat=True)[:PRUNED_AT_ONCE]
        )
        if not old:
            return dropped
        OutboxEvent.objects.filter(pk__in=old).delete()
        dropped += len(old)
