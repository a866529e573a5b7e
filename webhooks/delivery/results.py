"""What became of attempts: the log, the next try, and the health of the webhook."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q, Window
from django.db.models.functions import RowNumber
from django.utils.translation import gettext_noop

from gateway_project.core import clock
from gateway_project.core.stores import bulk
from gateway_project.core.stores.refused import UNFIT, reason, write_all_but
from gateway_project.core.stores.sweeps import delete_rows
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import webhook_attempts
from webhooks.delivery import outbox, schedule, subscriptions
from webhooks.delivery.attempt import Job, Outcome
from webhooks.models import Webhook, WebhookAttempt, WebhookDelivery, WebhookNotice

NOTICE_STEP = 4
"""The owners are told after so many attempts of one delivery."""
DISABLE_AFTER = timedelta(days=5)
EPISODE_GAP = timedelta(hours=60)
"""Failures further apart are not one trouble: more than the longest wait, which a receiver may
double."""
ATTEMPTS_KEPT = 10
"""Of one delivery, the newest: a whole schedule. It may be sent again by hand without end."""
BODIES_KEPT = 2
"""Of so many newest attempts what the receiver answered, 16 KiB each, is kept."""
TRIMMED_MAX = 1_000
"""Old attempts that one transaction forgets or empties; the next attempt goes on."""
GONE = 410
UNSTORABLE = gettext_noop("its answer could not be stored")
DEFERRED_SECONDS = 30, 3600
"""Half of its age later a delivery is tried again that we could not even try; within these."""
DEFERRED_MAX = timedelta(days=1)
"""So long trouble of ours is not held against a receiver; then a delivery must come to an end."""
Status = WebhookDelivery.Status
log = get_logger("gateway.webhooks")
Reason = Webhook.DisabledReason


@dataclass(frozen=True, slots=True)
class _Ending:
    """A webhook that must not be sent to any more."""

    webhook_id: UUID
    reason: Webhook.DisabledReason
    facts: dict[str, Any]


def record(results: Sequence[tuple[Job, Outcome]]) -> None:
    """Write what became of these attempts, all or nothing. Writing one twice does no harm.

    Deliveries that are gone meanwhile, with their webhook, are left out. Of a result that the
    database refuses only the bare fact is written, and what it held is parked.
    """
    endings: list[_Ending] = []
    with transaction.atomic():
        write_all_but(results, lambda some: endings.extend(_record(some)), _record_bare)
    for _, outcome in results:
        webhook_attempts.labels(outcome.kind).inc()
    for ending in endings:  # with locks of its own
        try:
            subscriptions.disable(ending.webhook_id, ending.reason, ending.facts)
        except UNFIT as exc:  # the next failure comes back to it
            log.error("webhook_undisabled", webhook=str(ending.webhook_id), error=reason(exc))


def _record(results: Sequence[tuple[Job, Outcome]]) -> list[_Ending]:
    deliveries = {
        delivery.pk: delivery
        for delivery in WebhookDelivery.objects.select_for_update(no_key=True)
        .filter(pk__in=[job.delivery_id for job, _ in results])
        .order_by("pk")
    }
    known = [(deliveries[j.delivery_id], o) for j, o in results if j.delivery_id in deliveries]
    known = _without_deferred(known)
    attempts = [_attempt(delivery, outcome) for delivery, outcome in known]
    WebhookAttempt.objects.bulk_create(attempts)
    _trim([delivery.pk for delivery, _ in known if delivery.attempts_made > BODIES_KEPT])
    _write([delivery for delivery, _ in known])
    is_failing = {job.webhook_id for job, _ in results if job.is_failing}
    return _judge(
        [
            (delivery, outcome)
            for delivery, outcome in known
            if not outcome.is_success or delivery.webhook_id in is_failing
        ]
    )


def _record_bare(result: tuple[Job, Outcome], error: Exception) -> None:
    """Unwritten, it would be sent again at the end of each lease, for ever."""
    job, outcome = result
    content = outcome.response_body.encode(errors="replace")
    outbox.park_delivery("webhooks.result", job.delivery_id, error, content)
    bare = replace(outcome, response_body="", error=UNSTORABLE, retry_after_seconds=None)
    write_all_but([(job, bare)], _record, lambda _, exc: outbox.give_up(job.delivery_id, exc))


def _without_deferred(
    results: Sequence[tuple[WebhookDelivery, Outcome]],
) -> list[tuple[WebhookDelivery, Outcome]]:
    """The attempts that were made; those that could not be are put off, and leave no trace."""
    made = []
    soonest, latest = DEFERRED_SECONDS
    for delivery, outcome in results:
        age = outcome.ended_at - delivery.created_at
        if outcome.kind != "deferred" or age > DEFERRED_MAX:
            made.append((delivery, outcome))
        elif delivery.status == Status.PENDING:
            wait = min(max(age.total_seconds() / 2, soonest), latest)
            delivery.error, delivery.is_claimed = outcome.error, False
            delivery.next_attempt_at = outcome.ended_at + timedelta(seconds=wait)
            delivery.save(update_fields=["error", "is_claimed", "next_attempt_at"])
    return made


def _attempt(delivery: WebhookDelivery, outcome: Outcome) -> WebhookAttempt:
    """The log row; `delivery` is changed by what happened, not written."""
    is_over = delivery.status != Status.PENDING  # delivered by another worker, or given up
    delivery.attempts_made += 1
    delivery.step += 1
    delivery.is_claimed = False
    if not (is_over and delivery.status == Status.DELIVERED):
        delivery.http_status, delivery.error = outcome.http_status, outcome.error
    if outcome.is_success:
        delivery.status, delivery.next_attempt_at = Status.DELIVERED, None
        delivery.finished_at = outcome.ended_at
    elif not is_over:
        if outcome.http_status == GONE or delivery.step >= delivery.steps_max:
            delivery.status, delivery.next_attempt_at = Status.FAILED, None
            delivery.finished_at = outcome.ended_at
        else:
            delivery.next_attempt_at = outcome.ended_at + timedelta(
                seconds=schedule.delay_seconds(
                    delivery.step,
                    is_overloaded=outcome.is_overloaded,
                    retry_after_seconds=outcome.retry_after_seconds,
                )
            )
    return WebhookAttempt(
        delivery=delivery,
        at=outcome.at,
        duration_ms=outcome.duration_ms,
        http_status=outcome.http_status,
        error=outcome.error,
        response_body=outcome.response_body,
        next_attempt_at=delivery.next_attempt_at,
    )


def _trim(delivery_ids: Sequence[UUID]) -> None:
    """Keep the log of these deliveries, which are locked, within its bounds."""
    if not delivery_ids:
        return
    rank = Window(RowNumber(), partition_by=F("delivery_id"), order_by=F("id").desc())
    beyond = (
        WebhookAttempt.objects.filter(delivery__in=delivery_ids)
        .annotate(rank=rank)
        .filter(Q(rank__gt=ATTEMPTS_KEPT) | Q(rank__gt=BODIES_KEPT) & ~Q(response_body=""))
        .order_by("id")
    )
    found = list(beyond.values_list("pk", "rank")[:TRIMMED_MAX])
    delete_rows(WebhookAttempt, [pk for pk, rank in found if rank > ATTEMPTS_KEPT])
    emptied = [pk for pk, rank in found if rank <= ATTEMPTS_KEPT]
    WebhookAttempt.objects.filter(pk__in=emptied).update(response_body="")


def _write(deliveries: Sequence[WebhookDelivery]) -> None:
    """Those that arrived at the first attempt, nearly all, with one statement for each status."""
    by_status: dict[int | None, list[UUID]] = defaultdict(list)
    others = []
    for delivery in deliveries:
        if delivery.status == Status.DELIVERED and delivery.attempts_made == 1:
            by_status[delivery.http_status].append(delivery.pk)
        else:
            others.append(delivery)
    for http_status, ids in by_status.items():
        WebhookDelivery.objects.filter(pk__in=ids).update(
            status=Status.DELIVERED,
            attempts_made=1,
            step=F("step") + 1,
            is_claimed=False,
            http_status=http_status,
            error="",
            next_attempt_at=None,
            finished_at=clock.now(),
        )
    bulk.update_each(
        others,
        [
            *("status", "attempts_made", "step", "is_claimed", "http_status", "error"),
            *("next_attempt_at", "finished_at"),
        ],
    )


def _judge(results: Sequence[tuple[WebhookDelivery, Outcome]]) -> list[_Ending]:
    """Keep the health of the webhooks, and say which of them are to be disabled."""
    if not results:
        return []
    ids = {delivery.webhook_id for delivery, _ in results}
    webhooks = {
        webhook.pk: webhook
        for webhook in Webhook.objects.listed()
        .select_for_update(no_key=True)
        .filter(pk__in=ids)
        .order_by("pk")
    }
    endings = []
    for delivery, outcome in sorted(results, key=lambda result: result[1].ended_at):
        webhook = webhooks.get(delivery.webhook_id)
        if webhook is None:
            continue  # of addresses named in requests: one that fails says nothing of the others
        if outcome.is_success:
            webhook.failing_since = webhook.last_failed_at = None
            webhook.is_noticed = False
            continue
        at = outcome.ended_at
        if webhook.failing_since is None or _is_long_ago(webhook.last_failed_at, at):
            webhook.failing_since = at
        webhook.last_failed_at = at
        facts = {"last": outcome.summary, "failing_since": webhook.failing_since.isoformat()}
        if delivery.step == NOTICE_STEP and not webhook.is_noticed:
            webhook.is_noticed = True
            WebhookNotice.objects.create(
                webhook=webhook, kind=WebhookNotice.Kind.FAILING, facts=facts
            )
        if outcome.http_status == GONE:
            endings.append(_Ending(webhook.pk, Reason.GONE, facts))
        elif at - webhook.failing_since >= DISABLE_AFTER:
            endings.append(_Ending(webhook.pk, Reason.FAILING, facts))
    names = ["failing_since", "last_failed_at", "is_noticed"]
    bulk.update_each(list(webhooks.values()), names)
    return endings


def _is_long_ago(then: datetime | None, now: datetime) -> bool:
    return then is None or now - then > EPISODE_GAP
