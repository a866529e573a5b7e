"""Who wants to be told what, and what became of each telling."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from accounts.audit import RECORDED
from accounts.models import OutboxEvent, Workspace, new_id
from gateway_project.core import clock
from gateway_project.core.stores.deletion import Deletable, Living


class Inbox(models.Model):
    """The receiver that the gateway has for a workspace: `POST /inbox/{token}`."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    workspace = models.OneToOneField(Workspace, on_delete=models.CASCADE, related_name="inbox")
    token = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    class Meta:
        verbose_name_plural = "inboxes"

    def __str__(self) -> str:
        return f"inbox of {self.workspace_id}"


class InboxRequest(models.Model):
    """A request that an inbox got. `findings`: the debugger's, `[[tone, words], …]`."""

    inbox = models.ForeignKey(
        Inbox, on_delete=models.CASCADE, related_name="requests", db_index=False
    )
    at = models.DateTimeField(default=clock.now, editable=False)
    headers = models.JSONField(default=dict)
    body = models.TextField(blank=True, default="")
    is_valid = models.BooleanField(default=False)
    findings = models.JSONField(default=list)

    class Meta:
        indexes = [models.Index(fields=["inbox", "-id"], name="inbox_newest")]

    def __str__(self) -> str:
        return f"request {self.pk}"


class WebhookQuerySet(models.QuerySet["Webhook"]):
    def listed(self) -> WebhookQuerySet:
        """Those that people made, without the one of addresses named in requests."""
        return self.filter(is_per_request=False)


class Webhook(Deletable):
    """An address of a workspace that gets the events it asked for.

    One that `is_per_request` has no address and asks for nothing: it stands for all addresses that
    requests name (`webhook_url`), and holds the secret that signs for them.
    """

    class DisabledReason(models.TextChoices):
        PAUSED = "paused"  # by its owner
        FAILING = "failing"  # nothing but failures for days
        GONE = "gone"  # it answered 410

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="webhooks")
    url = models.CharField(max_length=2048)
    inbox = models.OneToOneField(
        Inbox,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        editable=False,
        help_text="It is delivered there, inside this process; its URL is never dialled.",
    )
    is_per_request = models.BooleanField(default=False, db_default=False, editable=False)
    description = models.CharField(max_length=200, blank=True, default="")
    events = models.JSONField(default=list)
    retry_count = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="Attempts after the first; empty: the whole schedule."
    )
    is_active = models.BooleanField(default=True)
    disabled_reason = models.CharField(
        max_length=10, choices=DisabledReason, blank=True, default="", editable=False
    )
    failing_since = models.DateTimeField(null=True, blank=True, editable=False)
    last_failed_at = models.DateTimeField(null=True, blank=True, editable=False)
    is_noticed = models.BooleanField(
        default=False, editable=False, help_text="Its owner was told that it fails."
    )
    is_closing = models.BooleanField(
        db_default=False,
        default=False,
        editable=False,
        help_text="What is on its way there is being given up, piece by piece.",
    )
    created_at = models.DateTimeField(default=clock.now, editable=False)

    objects = Living.from_queryset(WebhookQuerySet)()

    class Meta(Deletable.Meta):
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["id"], name="webhook_closing", condition=Q(is_closing=True)),
            models.Index(
                fields=["id"], name="webhook_deleted", condition=Q(deleted_at__isnull=False)
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["workspace"],
                condition=Q(is_per_request=True),
                name="webhook_per_request_once",
            ),
        ]

    def __str__(self) -> str:
        return "webhook_url of requests" if self.is_per_request else self.url

    def withholds(self, event_type: str) -> bool:
        """The audit trail goes only where it is asked for, whatever waits or is sent again.

        Who may not read it changes neither the address nor the events of a webhook that asks.
        """
        return event_type == RECORDED and RECORDED not in self.events


class WebhookSecret(models.Model):
    """A signing secret, encrypted. One has no end; others sign beside it until theirs."""

    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, related_name="secrets")
    encrypted = models.TextField(editable=False)
    created_at = models.DateTimeField(default=clock.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["webhook"], condition=Q(expires_at=None), name="webhook_current_secret"
            ),
        ]

    def __str__(self) -> str:
        return f"secret of {self.webhook_id}"


class WebhookDelivery(models.Model):
    """One event on its way to one webhook.

    While it is pending it is due at `next_attempt_at`. A worker that claims it moves that time to
    the end of its lease, so that another takes over when the worker dies.
    """

    class Status(models.TextChoices):
        PENDING = "pending"
        DELIVERED = "delivered"
        FAILED = "failed"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    webhook = models.ForeignKey(
        Webhook, on_delete=models.CASCADE, related_name="deliveries", db_index=False
    )
    event = models.ForeignKey(
        OutboxEvent, on_delete=models.CASCADE, related_name="deliveries", db_index=False
    )
    event_type = models.CharField(max_length=60)
    status = models.CharField(max_length=10, choices=Status, default=Status.PENDING)
    attempts_made = models.PositiveSmallIntegerField(default=0)
    step = models.PositiveSmallIntegerField(
        default=0, help_text="Attempts since it was begun, or begun anew by hand."
    )
    steps_max = models.PositiveSmallIntegerField()
    next_attempt_at = models.DateTimeField(null=True, blank=True, default=clock.now)
    is_claimed = models.BooleanField(default=False)
    lane = models.CharField(
        max_length=300,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="Of an address named in a request: deliveries of one lane wait for each other.",
    )
    is_test = models.BooleanField(default=False, help_text="Asked for by hand; nothing happened.")
    http_status = models.PositiveSmallIntegerField(null=True, blank=True)
    error = models.CharField(max_length=300, blank=True, default="")
    created_at = models.DateTimeField(default=clock.now, editable=False)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name_plural = "webhook deliveries"
        constraints = [
            models.UniqueConstraint(fields=["event", "webhook"], name="webhook_delivery_once"),
        ]
        indexes = [
            models.Index(
                fields=["next_attempt_at"],
                name="webhook_delivery_due",
                condition=Q(status="pending"),
            ),
            models.Index(
                fields=["webhook", "next_attempt_at"],
                name="webhook_delivery_pending",
                condition=Q(status="pending"),
            ),
            models.Index(
                fields=["webhook", "lane", "next_attempt_at"],
                name="webhook_delivery_lane",
                condition=Q(status="pending") & ~Q(lane=""),
            ),
            models.Index(
                fields=["webhook", "-created_at"],
                name="webhook_delivery_failed",
                condition=Q(status="failed"),
            ),
            # With what counts and filters ask for, so that they need not read the rows.
            models.Index(
                fields=["webhook", "-created_at"],
                name="webhook_delivery_made",
                include=["status", "event_type"],
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event_type} {self.status}"

    @property
    def url(self) -> str:
        """Where it goes."""
        return self.event.deliver_to or self.webhook.url


class WebhookAttempt(models.Model):
    """One request and what came of it: a status, or an error. Bodies are cut at 16 KiB.

    Of a delivery only the newest are kept, and fewer bodies (`delivery/results.py`).
    """

    delivery = models.ForeignKey(WebhookDelivery, on_delete=models.CASCADE, related_name="attempts")
    at = models.DateTimeField()
    duration_ms = models.PositiveIntegerField()
    http_status = models.PositiveSmallIntegerField(null=True)
    error = models.CharField(max_length=300, blank=True, default="")
    response_body = models.TextField(blank=True, default="")
    next_attempt_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.http_status or self.error}"


class WebhookNotice(models.Model):
    """A mail to the owners of a webhook, written in the transaction of the fact, sent by a task."""

    class Kind(models.TextChoices):
        FAILING = "failing"
        DISABLED = "disabled"
        ENABLED = "enabled"

    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, related_name="notices")
    kind = models.CharField(max_length=10, choices=Kind)
    facts = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=clock.now, editable=False)
    claimed_at = models.DateTimeField(null=True, editable=False)
    sent_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        indexes = [
            models.Index(fields=["created_at"], name="webhook_notice_time"),
            models.Index(
                fields=["created_at"], name="webhook_notice_waiting", condition=Q(sent_at=None)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.webhook_id}"
