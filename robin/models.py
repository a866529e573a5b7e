"""Who may use Robin, their sessions (tokens are kept as digests only), samples of its figures."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q

from accounts.models import new_id, say_changed
from gateway_project.core import clock
from robin.permissions import Role


class RobinAccessQuerySet(models.QuerySet["RobinAccess"]):
    def update(self, **fields: Any) -> int:
        count = super().update(**fields)
        say_changed("*")
        return count

    def delete(self) -> tuple[int, dict[str, int]]:
        deleted = super().delete()
        say_changed("*")
        return deleted


class RobinAccess(models.Model):
    """A user's role at Robin. Without a row there is none: registration gives nothing here."""

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="robin_access"
    )
    role = models.CharField(max_length=20, choices=Role)
    created_at = models.DateTimeField(default=clock.now, editable=False)

    objects = RobinAccessQuerySet.as_manager()

    class Meta:
        verbose_name = "Robin access"
        verbose_name_plural = "Robin access"
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.user} as {self.role}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **kwargs)
        say_changed(self.user_id)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        deleted = super().delete(*args, **kwargs)
        say_changed(self.user_id)
        return deleted


class RefreshFamily(models.Model):
    """One sign-in on one device: the chain of its refresh tokens. Revoked as a whole."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="refresh_families"
    )
    password_stamp = models.CharField(
        max_length=64, editable=False, help_text="Ends the session when the password changes."
    )
    client_ip = models.GenericIPAddressField(null=True, blank=True)
    user_agent = models.CharField(max_length=200, blank=True, default="")
    created_at = models.DateTimeField(default=clock.now, editable=False)
    expires_at = models.DateTimeField(help_text="When its latest refresh token does.")
    revoked_at = models.DateTimeField(null=True, blank=True)
    revoked_because = models.CharField(max_length=20, blank=True, default="")

    class Meta:
        verbose_name = "session"
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["expires_at"], name="refresh_family_expiry"),
            models.Index(
                fields=["id"], name="refresh_family_ended", condition=Q(revoked_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user}, since {self.created_at:%Y-%m-%d %H:%M}"

    @property
    def is_of_current_password(self) -> bool:
        """Whoever stamped it may have had another `SECRET_KEY` in front."""
        user = self.user
        stamps = (user.get_session_auth_hash(), *user.get_session_auth_fallback_hash())
        return self.password_stamp in stamps


class RefreshToken(models.Model):
    """One refresh token. `parent` is the token that it replaced: each is replaced once."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    family = models.ForeignKey(RefreshFamily, on_delete=models.CASCADE, related_name="tokens")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    parent = models.OneToOneField(
        "self", on_delete=models.CASCADE, null=True, editable=False, related_name="successor"
    )
    issued_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, editable=False)

    def __str__(self) -> str:
        return f"{self.id} of {self.family_id}"


class MetricSample(models.Model):
    """Robin's figures at one time, as Celery beat finds them: Robin itself keeps no history."""

    at = models.DateTimeField(primary_key=True, default=clock.now, editable=False)
    figures = models.JSONField(help_text="Name → number, see robin/metrics.py; counters as such.")

    class Meta:
        ordering = ["at"]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S}"


class DeadItem(models.Model):
    """An item that Robin gave up, and that was told of: once, for as long as it is there."""

    uid = models.CharField(max_length=36, primary_key=True)
    seen_at = models.DateTimeField(default=clock.now, editable=False)

    def __str__(self) -> str:
        return self.uid


class SeenItem(models.Model):
    """Since when an item of Robin's queue is known here; gone with the item."""

    uid = models.UUIDField(primary_key=True)
    first_seen_at = models.DateTimeField()
    missed_at = models.DateTimeField(
        null=True, help_text="Since when it is in no part of the list: gone, or between two parts."
    )

    def __str__(self) -> str:
        return str(self.uid)


class QueueJob(models.Model):
    """What is done to many items of Robin's queue, piece by piece, behind the request."""

    class State(models.TextChoices):
        QUEUED = "queued"
        PROCESSING = "processing"
        COMPLETE = "complete"
        PARTIAL = "partial"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    action = models.CharField(max_length=10)
    state = models.CharField(max_length=10, choices=State, default=State.QUEUED)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+"
    )
    created_at = models.DateTimeField(default=clock.now, editable=False)
    finished_at = models.DateTimeField(null=True, blank=True)
    uids = models.BinaryField(help_text="Compressed; each UUID as 16 bytes.")
    requested = models.PositiveIntegerField()
    sent = models.PositiveIntegerField(default=0, db_default=0, help_text="Of them, by now.")
    done = models.PositiveIntegerField(default=0, db_default=0)
    unknown = models.PositiveIntegerField(
        default=0, db_default=0, help_text="Robin was asked, and did not say what became of it."
    )
    left_out = models.PositiveIntegerField(
        default=0, db_default=0, help_text="Being delivered at that moment."
    )
    in_flight = models.PositiveIntegerField(default=0, db_default=0)
    is_forced = models.BooleanField(default=False, db_default=False)
    last_try = models.PositiveIntegerField(
        default=0, db_default=0, help_text="So many are dead at once if this retry fails."
    )
    is_in_doubt = models.BooleanField(
        default=False, db_default=False, help_text="Some may have been in delivery."
    )
    detail = models.CharField(max_length=300, blank=True, default="", db_default="")
    claimed_until = models.DateTimeField(null=True, blank=True)
    waits_since = models.DateTimeField(
        null=True, editable=False, help_text="Since when Robin is away, or refuses; empty: not."
    )
    audit = models.JSONField(default=dict)

    class Meta:
        verbose_name = "action on the mail queue"
        verbose_name_plural = "actions on the mail queue"
        indexes = [
            models.Index(
                fields=["created_at"],
                name="queue_job_open",
                condition=Q(state__in=["queued", "processing"]),
            ),
            models.Index(fields=["finished_at"], name="queue_job_finished"),
        ]

    def __str__(self) -> str:
        return f"{self.action} of {self.requested} items, {self.state}"

    @property
    def by(self) -> str:
        """Who asked for it, also when the account is gone."""
        return str(self.audit.get("actor", ""))


class QueueAlarm(models.Model):
    """What operators want to be told of Robin's queue, and whether it is so at this moment."""

    class Kind(models.TextChoices):
        OLDEST = "oldest"
        GROWTH = "growth"
        DEAD = "dead"
        BOUNCE = "bounce"

    kind = models.CharField(max_length=10, primary_key=True, choices=Kind)
    is_on = models.BooleanField(default=False, db_default=False)
    threshold = models.PositiveIntegerField(help_text="Minutes, items, items, percent.")
    value = models.FloatField(null=True, editable=False, help_text="As it was seen last.")
    seen_at = models.DateTimeField(null=True, editable=False)
    raised_at = models.DateTimeField(null=True, editable=False, help_text="Empty: all is well.")

    def __str__(self) -> str:
        return self.kind


class AlarmRecipient(models.Model):
    """Whom a mail tells when an alarm of the queue begins and ends."""

    email = models.EmailField(max_length=254, primary_key=True)

    def __str__(self) -> str:
        return self.email


class AlarmNotice(models.Model):
    """The beginning or the end of an alarm: told once."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=10, choices=QueueAlarm.Kind)
    is_end = models.BooleanField(default=False, db_default=False)
    value = models.FloatField()
    threshold = models.PositiveIntegerField()
    since = models.DateTimeField(help_text="When the alarm began.")
    at = models.DateTimeField(default=clock.now, editable=False)
    claimed_at = models.DateTimeField(null=True, editable=False)
    sent_at = models.DateTimeField(null=True, editable=False)  # empty where no mail left
    left = models.JSONField(
        null=True, editable=False, help_text="Whom to write to yet; empty: whoever is to be told."
    )

    class Meta:
        indexes = [models.Index(fields=["at"], name="alarm_notice_time")]

    def __str__(self) -> str:
        return f"{self.kind}, {'over' if self.is_end else 'raised'}"

    @property
    def waits(self) -> bool:
        return bool(self.left) if self.left is not None else self.sent_at is None


class Document(models.Model):
    """Settings that Robin UI edits and Robin never reads: kept here, so that the UI works."""

    name = models.CharField(max_length=20, primary_key=True)
    content = models.JSONField()
    updated_at = models.DateTimeField(default=clock.now, editable=False)
    updated_by = models.CharField(max_length=254)

    class Meta:
        verbose_name = "document of Robin UI"
        verbose_name_plural = "documents of Robin UI (stored here, not applied to Robin)"

    def __str__(self) -> str:
        return self.name


class BlocklistEntry(models.Model):
    """Whom to refuse, as Robin UI keeps it: Robin has no way to be told over HTTP."""

    class Type(models.TextChoices):
        IP = "IP"
        CIDR = "CIDR"
        DOMAIN = "DOMAIN"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    type = models.CharField(max_length=6, choices=Type)
    value = models.CharField(max_length=253)
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField(default=clock.now, editable=False)
    created_by = models.CharField(max_length=254, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    active = models.BooleanField(default=True)

    class Meta:
        verbose_name_plural = "blocklist (stored here, not applied to Robin)"
        ordering = ["-created_at", "-id"]
        constraints = [
            models.UniqueConstraint(fields=["type", "value"], name="blocklist_entry_once")
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.value}"
