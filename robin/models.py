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
