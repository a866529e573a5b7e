"""What is done to webhooks. Every function owns its transaction and is audited."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Exists, IntegerField, OuterRef, Q, QuerySet, Subquery
from django.utils.translation import gettext_noop

from accounts.audit import RECORDED
from accounts.events import address_without_secrets, audit, changes_of, publish
from accounts.models import OutboxEvent, Workspace
from accounts.services import Actor
from gateway_project.core import clock, encryption, errors
from gateway_project.core.sentences import Sentence
from gateway_project.core.telemetry.metrics import bound_reached
from gateway_project.core.upstream import destinations
from webhooks import catalogue, keyring, signing
from webhooks.delivery import attempt, callbacks, outbox, schedule, subscriptions
from webhooks.delivery.results import ATTEMPTS_KEPT, record
from webhooks.models import (
    Inbox,
    Webhook,
    WebhookAttempt,
    WebhookDelivery,
    WebhookNotice,
    WebhookSecret,
)
from webhooks.receiving import debugger

OLD_SECRETS_MAX = 9
RECOVERED_MAX = 10_000
HEALTH_DAYS = 7
COUNTED_MAX = 10_000
Reason = Webhook.DisabledReason
Status = WebhookDelivery.Status


def must_audit(can_audit: bool, events: Iterable[str]) -> None:
    """Raise 403 when these events tell the audit trail to who may not read it."""
    if RECORDED in events and not can_audit:
        raise errors.ScopeDenied(
            gettext_noop(
                "The event 'audit.recorded' needs a key with the scope 'audit:read'. Use one; the "
                "portal makes one for owners and admins (/app/keys)."
            )
        )


def register(
    workspace_id: UUID,
    url: str,
    events: list[str],
    *,
    description: str = "",
    retry_count: int | None = None,
    inbox: Inbox | None = None,
    actor: Actor,
) -> tuple[Webhook, str]:
    """Make a webhook. Returns it with its secret, which is shown this once.

    Whether we may send to `url` is for the caller to check. With `inbox`, the workspace's own, it
    is delivered there and `url` is never dialled. Raises 409 when the workspace has as many as its
    plan gives, or one that sends to `inbox`.
    """
    secret = signing.make_secret()
    with transaction.atomic():
        workspace = subscriptions.locked(workspace_id)
        most = workspace.plan.webhooks_max
        if Webhook.objects.listed().filter(workspace=workspace).count() >= most:
            bound_reached.labels("webhooks").inc()
            raise errors.Conflict(
                Sentence(
                    gettext_noop(
                        "A workspace has at most %(most)s webhooks on its plan. Delete one that "
                        "is not used."
                    ),
                    most=str(most),
                )
            )
        if inbox is not None and Webhook.objects.filter(inbox=inbox).exists():
            raise errors.Conflict(
                gettext_noop(
                    "A webhook sends to the inbox already. Change that one, or delete it first."
                )
            )
        webhook = Webhook.objects.create(
            workspace=workspace,
            url=url,
            inbox=inbox,
            events=events,
            description=description,
            retry_count=retry_count,
        )
        _add_secret(webhook, secret)
        subscriptions.tell(workspace)
        audit(
            "webhook.created",
            workspace=workspace,
            target=webhook.pk,
            url=address_without_secrets(url),
            events=list(events),
            **actor.fields(),
        )
    return webhook, secret


def _locked(webhook: Webhook) -> Workspace:
    """Its workspace, and the webhook as it is by now: both locked. Raises 404 when it was deleted.

    Whoever found it may have waited for somebody who changed it.
    """
    workspace = subscriptions.locked(webhook.workspace_id)
    try:
        webhook.refresh_from_db(from_queryset=Webhook.objects.select_for_update(no_key=True))
    except Webhook.DoesNotExist:
        raise errors.NotFound from None
    return workspace


def update(
    webhook: Webhook, changes: dict[str, Any], *, can_audit: bool = False, actor: Actor
) -> Webhook:
    """Change address, events, description or retries, or pause it (`is_active: False`).

    `can_audit`: whoever asks may read the audit trail. Where it is sent, and that, is for them.
    """
    with transaction.atomic():
        workspace = _locked(webhook)
        if changes.keys() & {"url", "events"}:
            must_audit(can_audit, {*webhook.events, *changes.get("events", ())})
        if not webhook.is_active:  # for whatever reason: that one stays
            changes = {name: value for name, value in changes.items() if name != "is_active"}
        changed = changes_of(webhook, changes)
        values = dict(changes)
        if is_paused := changes.get("is_active") is False:
            values |= {"disabled_reason": Reason.PAUSED, "is_closing": True}
        if "url" in changes:
            values["inbox"] = None  # from now on it is dialled, and the guard asked
        if not values:
            return webhook
        for field, value in values.items():
            setattr(webhook, field, value)
        webhook.save(update_fields=[*values])
        subscriptions.tell(workspace)
        audit(
            "webhook.changed",
            workspace=workspace,
            target=webhook.pk,
            changes=changed,
            **actor.fields(),
        )
    if is_paused:
        subscriptions.close_first(webhook.pk)
    return webhook


def enable(webhook: Webhook, *, actor: Actor) -> Webhook:
    """Send a probe, and let events through again when it is answered with 2xx; else raise 409.

    Takes as long as the receiver, at most `attempt.TIMEOUT_SECONDS`.
    """
    from webhooks.delivery.sending import send_once

    _require_running(webhook)
    probed = webhook.url, webhook.inbox_id
    delivery = _begin_test(webhook, "webhook.test", is_claimed=True)
    [job] = attempt.jobs_of([delivery.pk])
    outcome = send_once(job)
    record([(job, outcome)])
    if outcome.kind == "deferred":
        raise errors.StoreUnavailable(
            Sentence(
                gettext_noop(
                    "The webhook stays disabled: we could not send the probe (%(summary)s). "
                    "That is our own trouble, not the receiver's; try again shortly."
                ),
                summary=outcome.summary,
            )
        )
    if not outcome.is_success:
        raise errors.Conflict(
            Sentence(
                gettext_noop(
                    "The webhook stays disabled: its probe failed (%(summary)s). Mend the "
                    "receiver and try again; delivery %(delivery)s has the answer."
                ),
                summary=outcome.summary,
                delivery=str(delivery.pk),
            )
        )
    with transaction.atomic():
        workspace = _locked(webhook)
        if (webhook.url, webhook.inbox_id) != probed:
            raise errors.Conflict(
                gettext_noop(
                    "The webhook stays disabled: its address was changed while the old one was "
                    "probed. Try again."
                )
            )
        webhook.is_active, webhook.is_closing = True, False
        webhook.disabled_reason = ""
        webhook.failing_since = webhook.last_failed_at = None
        webhook.is_noticed = False
        webhook.save(
            update_fields=[
                *("is_active", "is_closing", "disabled_reason"),
                *("failing_since", "last_failed_at", "is_noticed"),
            ]
        )
        subscriptions.tell(workspace)
        _notice_enabled(webhook)
        audit("webhook.enabled", workspace=workspace, target=webhook.pk, **actor.fields())
    return webhook


def _notice_enabled(webhook: Webhook) -> None:
    """Once an hour at most: somebody may pause and enable it all day long."""
    kind, since = WebhookNotice.Kind.ENABLED, clock.now() - timedelta(hours=1)
    if not WebhookNotice.objects.filter(webhook=webhook, kind=kind, created_at__gt=since).exists():
        WebhookNotice.objects.create(webhook=webhook, kind=kind)


def delete(webhook: Webhook, *, actor: Actor) -> None:
    """Forget the webhook, and its log behind (`core/stores/deletion.py`)."""
    with transaction.atomic():
        workspace = _locked(webhook)
        webhook.secrets.all().delete()
        webhook.is_active, webhook.deleted_at, webhook.inbox = False, clock.now(), None
        webhook.save(update_fields=["is_active", "deleted_at", "inbox"])
        subscriptions.tell(workspace)
        audit(
            "webhook.deleted",
            workspace=workspace,
            target=webhook.pk,
            url=address_without_secrets(webhook.url),
            **actor.fields(),
        )


def rotate_secret(webhook: Webhook, *, overlap_seconds: int, actor: Actor) -> tuple[str, datetime]:
    """A new secret, shown this once, and until when the old one signs beside it."""
    secret, now = signing.make_secret(), clock.now()
    valid_until = now + timedelta(seconds=overlap_seconds)
    with transaction.atomic():
        _locked(webhook)
        webhook.secrets.filter(expires_at=None).update(expires_at=valid_until)
        old = webhook.secrets.filter(expires_at__gt=now).order_by("-id")
        surplus = list(old.values_list("pk", flat=True)[OLD_SECRETS_MAX:])
        webhook.secrets.filter(pk__in=surplus).delete()
        webhook.secrets.filter(expires_at__lte=now).delete()
        _add_secret(webhook, secret)
        audit(
            "webhook.secret_rotated",
            workspace=webhook.workspace,
            target=webhook.pk,
            **actor.fields(),
        )
    return secret, valid_until


def check_address(webhook: Webhook) -> None:
    """Raise the 422 when we do not send to its address (any more).

    Asks a name server: before `test`, and not inside a transaction. Raises 409 as that does.
    """
    _require_active(webhook)
    try:
        if webhook.inbox_id is None:
            destinations.check(webhook.url)
    except destinations.Refused as exc:
        raise errors.ValidationFailed(
            errors=[{"field": "webhook_id", "message": f"its address is refused: {exc}"}]
        ) from None


def test(webhook: Webhook, event_type: str) -> WebhookDelivery:
    """Send the example of an event, once; raises 409 when it is disabled."""
    _require_active(webhook)
    return _begin_test(webhook, event_type)


def _begin_test(webhook: Webhook, event_type: str, *, is_claimed: bool = False) -> WebhookDelivery:
    now = clock.now()
    with transaction.atomic():
        event = publish(
            webhook.workspace_id,
            event_type,
            result=catalogue.BY_NAME[event_type].example,
            metadata={"test": True},
            **_example_request(event_type),
        )
        # It is for this webhook alone.
        OutboxEvent.objects.filter(pk=event.pk).update(published_at=now)
        due = now + outbox.LEASE if is_claimed else now
        return WebhookDelivery.objects.create(
            webhook=webhook,
            event=event,
            event_type=event_type,
            steps_max=1,
            is_test=True,
            next_attempt_at=due,
            is_claimed=is_claimed,
        )


def _example_request(event_type: str) -> dict[str, Any]:
    example = catalogue.example_of(catalogue.BY_NAME[event_type])
    if "request_id" not in example:
        return {}
    return {"request_id": example["request_id"], "api_key_id": UUID(example["api_key_id"])}


def resend(delivery: WebhookDelivery, *, actor: Actor) -> None:
    """Begin the delivery anew, now, whatever became of it.

    Raises 409 when the webhook is disabled, or asks for the audit trail no more.
    """
    _require_active(delivery.webhook)
    if not delivery.is_test and delivery.webhook.withholds(delivery.event_type):
        raise errors.Conflict(
            gettext_noop(
                "The webhook asks for 'audit.recorded' no more. Somebody who may read the audit "
                "trail adds it to its events first."
            )
        )
    with transaction.atomic():
        outbox.send_again([delivery.pk])
        audit(
            "webhook.resent",
            workspace=delivery.webhook.workspace,
            target=delivery.pk,
            **actor.fields(),
        )


def recover(
    webhook: Webhook, since: datetime, until: datetime | None, *, actor: Actor
) -> tuple[int, bool]:
    """Send again what failed, and what was never tried, of the events from `since` to `until`.

    At most `RECOVERED_MAX` at a time, oldest first; returns how many, and whether that is all.
    Raises 409 when it is disabled.
    """
    _require_active(webhook)
    until = until or clock.now()
    with transaction.atomic():
        failed = list(
            WebhookDelivery.objects.filter(
                webhook=webhook,
                status=Status.FAILED,
                is_test=False,
                created_at__gte=since,  # none is made before its event
                event__created_at__gte=since,
                event__created_at__lte=until,
            )
            .exclude(event_type__in=[RECORDED] if webhook.withholds(RECORDED) else [])
            .order_by("event__created_at")
            .values_list("pk", flat=True)[: RECOVERED_MAX + 1]
        )
        is_complete = len(failed) <= RECOVERED_MAX
        failed = failed[:RECOVERED_MAX]
        outbox.send_again(failed)
        room = RECOVERED_MAX - len(failed)
        existing = WebhookDelivery.objects.filter(event=OuterRef("pk"))
        wanted = (
            ~Q(deliver_to="")
            if webhook.is_per_request
            else Q(deliver_to="", type__in=webhook.events)
        )
        missed = list(
            OutboxEvent.objects.filter(
                wanted,
                ~Exists(existing.filter(webhook=webhook)),
                ~Exists(existing.filter(is_test=True)),
                workspace_id=webhook.workspace_id,
                created_at__gte=since,
                created_at__lte=until,
                published_at__isnull=False,
            )
            .order_by("created_at")
            .values_list("pk", "type", "deliver_to")[: room + 1]
        )
        is_complete = is_complete and len(missed) <= room
        steps = schedule.steps_max(webhook.retry_count)
        made = [
            WebhookDelivery(
                webhook=webhook,
                event_id=pk,
                event_type=kind,
                lane=callbacks.lane_of(url),
                steps_max=steps,
            )
            for pk, kind, url in missed[:room]
        ]
        WebhookDelivery.objects.bulk_create(made, ignore_conflicts=True)
        audit(
            "webhook.recovered",
            workspace=webhook.workspace,
            target=webhook.pk,
            deliveries=len(failed) + len(made),
            **actor.fields(),
        )
    return len(failed) + len(made), is_complete


def _require_running(webhook: Webhook) -> None:
    if Workspace.objects.filter(pk=webhook.workspace_id, suspended_at__isnull=False).exists():
        raise errors.Conflict(
            gettext_noop(
                "This workspace is suspended: nothing is sent for it. Ask the operators of this "
                "gateway; afterwards recover what was not sent."
            )
        )


def _require_active(webhook: Webhook) -> None:
    _require_running(webhook)
    if not webhook.is_active:
        raise errors.Conflict(
            gettext_noop("The webhook is disabled. Enable it first (PATCH is_active: true).")
        )


def counts_of(webhooks: Iterable[Webhook]) -> dict[UUID, dict[str, int]]:
    """{webhook: {status: deliveries}}: all that are pending, others of the last days.

    Of each no more than `COUNTED_MAX` are counted.
    """
    since = clock.now() - timedelta(days=HEALTH_DAYS)
    mine = WebhookDelivery.objects.filter(webhook=OuterRef("pk")).order_by()
    counted = {
        Status.PENDING: mine.filter(status=Status.PENDING),
        Status.FAILED: mine.filter(status=Status.FAILED, created_at__gte=since),
        Status.DELIVERED: mine.filter(status=Status.DELIVERED, created_at__gte=since),
    }
    columns = {f"n_{status}": _bounded_count(rows) for status, rows in counted.items()}
    found = Webhook.objects.filter(pk__in=[webhook.pk for webhook in webhooks]).order_by()
    return {
        pk: {str(status): n for status, n in zip(counted, counts, strict=True) if n}
        for pk, *counts in found.annotate(**columns).values_list("pk", *columns)
    }


def _bounded_count(rows: QuerySet[WebhookDelivery]) -> Subquery:
    """How many `rows` there are, up to `COUNTED_MAX`; `rows` name an outer query's."""
    some = rows.values("webhook_id")[:COUNTED_MAX]
    return CountOf(some, output_field=IntegerField())


def newest_answers(deliveries: Iterable[WebhookDelivery]) -> dict[int, str]:
    """{attempt: what its receiver answered}, of the newest of each. One query.

    For lists, whose attempts were read without (`defer("response_body")`).
    """
    logs = [list(delivery.attempts.all()) for delivery in deliveries]
    newest = WebhookAttempt.objects.filter(pk__in=[log[-1].pk for log in logs if log])
    return dict(newest.values_list("pk", "response_body"))


class CountOf(Subquery):
    template = "(SELECT count(*) FROM (%(subquery)s) AS counted)"


def examine(
    webhook: Webhook, headers: str, body: bytes, *, receivers_secret: str = ""
) -> debugger.Verdict:
    """What is wrong with a request that a receiver of `webhook` got; see `debugger`."""
    found = debugger.read_headers(headers)
    return debugger.examine(
        found,
        body,
        keyring.named(webhook),
        now=int(clock.now().timestamp()),
        sent=_sent(webhook, found.get(debugger.ID, ""), body),
        receivers_secret=receivers_secret,
    )


def _sent(webhook: Webhook, header_id: str, body: bytes) -> debugger.Sent | None:
    """What went out under the id of the header, or else of the body."""
    for text in (header_id, debugger.id_in(body)):
        try:
            event_id = UUID(text)
        except ValueError:
            continue
        delivery = webhook.deliveries.filter(event=event_id).first()
        if delivery is None:
            continue
        attempts = WebhookAttempt.objects.filter(delivery=delivery).order_by("-id")
        times = attempts.values_list("at", flat=True)[:ATTEMPTS_KEPT]
        return debugger.Sent(
            str(event_id),
            attempt.body_of(delivery.pk),
            [int(at.timestamp()) for at in times],
        )
    return None


def _add_secret(webhook: Webhook, secret: str) -> None:
    WebhookSecret.objects.create(webhook=webhook, encrypted=encryption.encrypt(secret))
