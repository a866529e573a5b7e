"""Tenants and what belongs to them. Log rows carry no foreign key."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, ClassVar, NamedTuple, NoReturn
from uuid import UUID

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.contrib.auth.models import UserManager as DjangoUserManager
from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from gateway_project.core import clock
from gateway_project.core.stores.bus import bus
from gateway_project.core.stores.deletion import Deletable, Living

PEOPLE = "people"
"""The bus' channel for users who changed: each word is an id, or `*`."""
SCOPES = ("detect", "batch", "webhooks", "usage:read", "keys:write", "audit:read")
DEFAULT_SCOPES = SCOPES[:4]
DELETION_WAITS = timedelta(days=7)
"""Between asking for the deletion of an account, which suspends what it alone owns, and that."""
AUDIT_SCOPE = "audit:read"
"""Whoever may not read the audit trail gives it to no key: they would read it with that."""
KEYS_AT_FULL_SPEED = 5
"""So many keys' minutes a workspace has together, where its plan says nothing else."""
new_id = clock.new_id


def default_scopes() -> list[str]:
    return list(DEFAULT_SCOPES)


def say_changed(user: UUID | str) -> None:
    """Tell every worker, after the commit: who remembers this user (`*`: any) must ask again."""
    transaction.on_commit(partial(bus.say, PEOPLE, str(user)))


class UserQuerySet(models.QuerySet["User"]):
    def update(self, **fields: Any) -> int:
        count = super().update(**fields)
        if set(fields) != {"last_login"}:
            say_changed("*")
        return count

    def delete(self) -> tuple[int, dict[str, int]]:
        deleted = super().delete()
        say_changed("*")
        return deleted


class UserManager(DjangoUserManager["User"]):
    """Users by e-mail; the user name is the e-mail unless one is given."""

    def get_queryset(self) -> UserQuerySet:
        users = UserQuerySet(self.model, using=self._db)
        # Old migrations use this manager before there is such a column.
        return users.filter(deleted_at=None) if hasattr(self.model, "deleted_at") else users

    def create_user(  # type: ignore[override]
        self, email: str, password: str | None = None, **fields: Any
    ) -> User:
        fields.setdefault("username", normal_email(email))
        return super().create_user(email=normal_email(email), password=password, **fields)

    def create_superuser(  # type: ignore[override]
        self, email: str, password: str | None = None, **fields: Any
    ) -> User:
        fields.setdefault("username", normal_email(email))
        return super().create_superuser(email=normal_email(email), password=password, **fields)

    def get_by_natural_key(self, email: str | None) -> User:
        return self.get(email=normal_email(email or ""))


def normal_email(email: str) -> str:
    """One form for one mailbox in practice: no mail host in use tells case apart."""
    return email.strip().lower()


class User(AbstractUser, Deletable):
    """A person. The e-mail is what they sign in with."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    email = models.EmailField("e-mail", unique=True)
    email_confirmed_at = models.DateTimeField(null=True, blank=True)
    mails_off = models.JSONField(
        default=list,
        db_default=models.Value([], models.JSONField()),
        blank=True,
        help_text="Kinds of mails (`accounts/mailing.py`) that they do not want.",
    )
    language = models.CharField(
        max_length=8,
        choices=settings.LANGUAGES,
        blank=True,
        default="",
        db_default="",
        help_text="Of pages and mails; empty: pages as the browser asks, mails in English.",
    )
    deletes_at = models.DateTimeField(
        null=True, editable=False, help_text="They asked for it, and may take it back until then."
    )

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []
    objects: ClassVar[UserManager] = UserManager()

    class Meta:
        ordering = ["-date_joined"]
        indexes = [  # the few that staff look for among the many
            models.Index(fields=["id"], name="user_staff", condition=Q(is_staff=True)),
            models.Index(fields=["id"], name="user_suspended", condition=Q(is_active=False)),
            models.Index(fields=["id"], name="user_deleted", condition=Q(deleted_at__isnull=False)),
            models.Index(
                fields=["deletes_at"], name="user_deletes", condition=Q(deletes_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return self.email

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **kwargs)
        say_changed(self.pk)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        user_id = self.pk
        deleted = super().delete(*args, **kwargs)
        say_changed(user_id)
        return deleted


class Plan(models.Model):
    """What a workspace may use. Limits are units; a detection is one."""

    name = models.SlugField(primary_key=True)
    rate_limit_per_minute = models.PositiveIntegerField()
    rate_limit_per_day = models.PositiveIntegerField(
        help_text="Caps each key, and is the day quota of the whole workspace."
    )
    log_days = models.PositiveIntegerField(help_text="How far back the request log can be read.")
    audit_days = models.PositiveIntegerField(
        blank=True,
        default=90,
        db_default=90,
        help_text="How far back members and keys can read who did what.",
    )
    workspace_rate_limit_per_minute = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Of all keys of a workspace together; empty: 5 keys' minutes.",
    )
    keys_max = models.PositiveIntegerField(
        blank=True, default=100, db_default=100, help_text="Keys that a workspace may have in use."
    )
    webhooks_max = models.PositiveIntegerField(
        blank=True, default=100, db_default=100, help_text="Webhooks that a workspace may have."
    )
    waiting_items_max = models.PositiveIntegerField(
        blank=True,
        default=50_000,
        db_default=50_000,
        help_text="Of a workspace's jobs that are not finished.",
    )
    waiting_bytes_max = models.PositiveBigIntegerField(
        blank=True,
        default=256 << 20,
        db_default=256 << 20,
        help_text="The same, as they are stored.",
    )

    price = models.CharField(
        max_length=60,
        blank=True,
        default="",
        db_default="",
        help_text="As the start page says it, such as “€49 a month”; empty: nothing is said.",
    )

    def __str__(self) -> str:
        return self.name

    @property
    def workspace_minute(self) -> int:
        return self.workspace_rate_limit_per_minute or (
            KEYS_AT_FULL_SPEED * self.rate_limit_per_minute
        )


class Workspace(Deletable):
    """A tenant: what keys, limits and usage belong to."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=100)
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, default="free")
    is_confirmed = models.BooleanField(
        default=False,
        help_text="Until an owner's e-mail is confirmed, keys work at the limits of a trial.",
    )
    rate_limit_per_day = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Instead of the plan's; empty: the plan's."
    )
    rate_limit_per_minute = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Of all its keys together, instead of the plan's; empty: the plan's.",
    )
    is_robin_operator = models.BooleanField(
        default=False, db_default=False, help_text="Its webhooks may hear of Robin's mail queue."
    )
    suspended_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Its keys are refused from then on."
    )
    deletes_at = models.DateTimeField(
        null=True, editable=False, help_text="With the only owner, who may take it back until then."
    )
    wanted_events = models.JSONField(
        default=list,
        db_default=models.Value([], models.JSONField()),
        editable=False,
        help_text="Types that its active webhooks ask for; kept by the webhooks app.",
    )
    requires_two_factors = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Members see it only once they have a second factor or a passkey.",
    )
    detection_policy = models.JSONField(
        default=dict,
        db_default=models.Value({}, models.JSONField()),
        blank=True,
        editable=False,
        help_text="In force for its keys that have none of their own.",
    )
    members = models.ManyToManyField(User, through="Membership", related_name="workspaces")
    created_at = models.DateTimeField(default=clock.now, editable=False)

    objects = Living()

    class Meta(Deletable.Meta):
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["created_at"], name="workspace_created"),
            models.Index(
                fields=["id"], name="workspace_suspended", condition=Q(suspended_at__isnull=False)
            ),
            models.Index(
                fields=["id"], name="workspace_deleted", condition=Q(deleted_at__isnull=False)
            ),
            models.Index(
                fields=["id"], name="workspace_robin", condition=Q(is_robin_operator=True)
            ),
        ]

    def __str__(self) -> str:
        return self.slug

    def loose_ends(self) -> list[models.QuerySet[Any]]:
        return [StoredText.objects.filter(workspace_id=self.pk)]

    @property
    def is_suspended_by_staff(self) -> bool:
        """Not by its owner, who asked for the deletion."""
        by_owner = self.deletes_at and self.deletes_at - DELETION_WAITS
        return self.suspended_at not in (None, by_owner)

    @property
    def wants_detections(self) -> bool:
        """Whether a webhook wants to be told of its detections."""
        return any(name.startswith("detection.") for name in self.wanted_events)

    @property
    def day_quota(self) -> int:
        return self.rate_limit_per_day or self.plan.rate_limit_per_day

    @property
    def minute_limit(self) -> int:
        return self.rate_limit_per_minute or self.plan.workspace_minute


class Membership(models.Model):
    class Role(models.TextChoices):
        """What each may do: `accounts.people.MAY`."""

        OWNER = "owner", _("Owner")
        ADMIN = "admin", _("Admin")
        MEMBER = "member", _("Developer")
        VIEWER = "viewer", _("Read-only")
        AUDITOR = "auditor", _("Auditor")

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.MEMBER)
    created_at = models.DateTimeField(default=clock.now, editable=False)
    digest_at = models.DateTimeField(
        default=clock.now,
        db_default=Now(),
        editable=False,
        help_text="When the week was looked at last, for its mail.",
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "workspace"], name="membership_once"),
        ]
        indexes = [models.Index(fields=["digest_at", "id"], name="membership_digest")]

    def __str__(self) -> str:
        return f"{self.user} in {self.workspace} as {self.role}"


class Invitation(models.Model):
    """A place in a workspace for whoever has the address. Its link is known to their mailbox alone.

    `token_hash` is SHA-256 of the link's token. It is open until it is accepted, withdrawn, or past
    `expires_at`.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="invitations")
    email = models.EmailField("e-mail")
    role = models.CharField(max_length=10, choices=Membership.Role)
    token_hash = models.CharField(max_length=64, unique=True, editable=False)
    invited_by = models.CharField(max_length=254)
    created_at = models.DateTimeField(default=clock.now, db_default=Now(), editable=False)
    sent_at = models.DateTimeField(default=clock.now, db_default=Now())
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True)
    withdrawn_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(
                fields=["workspace", "email"],
                name="invitation_open_once",
                condition=Q(accepted_at=None, withdrawn_at=None),
            ),
        ]
        indexes = [
            models.Index(
                fields=["email"],
                name="invitation_email",
                condition=Q(accepted_at=None, withdrawn_at=None),
            ),
            models.Index(fields=["expires_at"], name="invitation_expiry"),
        ]

    def __str__(self) -> str:
        return f"{self.email} to {self.workspace_id} as {self.role}"

    @property
    def is_open(self) -> bool:
        return self.accepted_at is None and self.withdrawn_at is None and not self.is_expired

    @property
    def is_expired(self) -> bool:
        return self.expires_at <= clock.now()


class WorkspaceDomain(models.Model):
    """A domain of which a workspace says that it is its own, and proves it by a TXT record.

    Whoever has a confirmed address at one that is verified may join with `role`.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="domains")
    domain = models.CharField(max_length=253)
    role = models.CharField(max_length=10, choices=Membership.Role, default=Membership.Role.VIEWER)
    token = models.CharField(max_length=64, editable=False)
    verified_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(default=clock.now, db_default=Now(), editable=False)

    class Meta:
        ordering = ["domain"]
        constraints = [
            models.UniqueConstraint(fields=["workspace", "domain"], name="domain_once"),
            models.UniqueConstraint(
                fields=["domain"],
                name="domain_of_one",
                condition=Q(verified_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return self.domain


def ended_by(at: datetime) -> Q:
    """Of keys: revoked, or rotated and out of grace."""
    return Q(revoked_at__lte=at) | Q(grace_until__lte=at)


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    def usable(self, at: datetime | None = None) -> ApiKeyQuerySet:
        """Keys that would be accepted at `at` (now): not revoked, not expired, not out of grace."""
        at = at or clock.now()
        return self.filter(
            Q(expires_at=None) | Q(expires_at__gt=at),
            Q(grace_until=None) | Q(grace_until__gt=at),
            revoked_at=None,
        )

    def ended(self, at: datetime) -> ApiKeyQuerySet:
        """Keys that `at` could never work again; one past its expiry may be given another."""
        return self.filter(ended_by(at))

    def without_policies(self) -> ApiKeyQuerySet:
        """For lists, which show none: each may be as large as `POLICY_BYTES_MAX`."""
        return self.defer("detection_policy")

    def listed(self) -> ApiKeyQuerySet:
        """Keys that people made, without the playground's."""
        return self.filter(is_session=False)

    def in_use(self, workspaces: Iterable[UUID]) -> dict[UUID, int]:
        """How many usable keys that people made each of these has; none: left out. One query."""
        found = self.usable().listed().filter(workspace__in=list(workspaces)).order_by()
        return dict(found.values_list("workspace").annotate(count=models.Count("pk")))


class ApiKey(models.Model):
    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="keys")
    name = models.CharField(max_length=100, default="Default key")
    prefix = models.CharField(max_length=16, editable=False)
    last4 = models.CharField(max_length=4, editable=False)
    key_hash = models.CharField(max_length=64, unique=True, editable=False)
    pepper_version = models.PositiveSmallIntegerField(editable=False)
    scopes = models.JSONField(default=default_scopes)
    allowed_cidrs = models.JSONField(
        default=list, blank=True, help_text="Networks the key may be used from; empty: any."
    )
    rate_limit_per_minute = models.PositiveIntegerField(default=60)
    rate_limit_per_day = models.PositiveBigIntegerField(default=10_000)
    expires_at = models.DateTimeField(null=True, blank=True)
    replaced_by = models.ForeignKey(
        "self", on_delete=models.SET_NULL, null=True, blank=True, related_name="replaces"
    )
    grace_until = models.DateTimeField(
        null=True, blank=True, help_text="A rotated key works until then."
    )
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_ip = models.GenericIPAddressField(null=True, blank=True, editable=False)
    limit_subject = models.UUIDField(
        null=True, editable=False, help_text="Whose counters it uses; empty: its own."
    )
    expiry_told_for = models.DateTimeField(
        null=True, editable=False, help_text="The expiry that `key.expiring` has told of."
    )
    grace_told_for = models.DateTimeField(
        null=True, editable=False, help_text="The end of its grace that a mail has told of."
    )
    grace_untold = models.JSONField(
        null=True, editable=False, help_text="The addresses that this mail has not reached yet."
    )
    detection_policy = models.JSONField(
        default=dict,
        db_default=models.Value({}, models.JSONField()),
        blank=True,
        help_text=(
            "What its detections mean when they do not say: `threshold: {engine, fallback}`, "
            "`mode`, `on_unavailable`."
        ),
    )
    is_session = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="The playground's: short-lived, hidden from lists.",
    )
    is_test = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="Takes nothing of the workspace's quota, and has a trial's limits.",
    )
    tags = models.JSONField(
        default=list, db_default=models.Value([], models.JSONField()), blank=True
    )
    owner = models.CharField(
        max_length=254,
        blank=True,
        default="",
        db_default="",
        help_text="The e-mail address of who looks after it.",
    )
    created_at = models.DateTimeField(default=clock.now, editable=False)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        verbose_name = "API key"
        ordering = ["-created_at", "-id"]
        # None on `last_used_at`: it would make every use of a key rewrite all of its indexes.
        indexes = [
            models.Index(fields=["prefix", "last4"], name="key_shown"),
            models.Index(fields=["id"], name="key_revoked", condition=Q(revoked_at__isnull=False)),
            models.Index(
                fields=["expires_at"],
                name="key_expiring",
                condition=Q(expires_at__isnull=False, revoked_at=None, is_session=False),
            ),
            models.Index(fields=["expires_at"], name="key_session", condition=Q(is_session=True)),
            models.Index(
                fields=["grace_until"],
                name="key_grace",
                condition=Q(grace_until__isnull=False, revoked_at=None),
            ),
            models.Index(
                fields=["limit_subject"],
                name="key_limit_subject",
                condition=Q(limit_subject__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…{self.last4})"

    @property
    def policy_in_force(self) -> dict[str, Any]:
        """Its own, else its workspace's; empty: the default of the installation."""
        found: dict[str, Any] = self.detection_policy or self.workspace.detection_policy
        return found

    @property
    def status(self) -> str:
        """`active`, `grace` (rotated, still working), `expired` or `revoked`."""
        now = clock.now()
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        if self.grace_until is not None:
            return "grace" if self.grace_until > now else "expired"
        return "active"

    @property
    def is_ended(self) -> bool:
        """Revoked, or rotated and out of grace: it never works again, and has no policy."""
        is_replaced = self.grace_until is not None and self.grace_until <= clock.now()
        return self.revoked_at is not None or is_replaced


class Limits(NamedTuple):
    """Of a key, and of all keys of its workspace together, in units of the limiter."""

    minute: int
    day: int
    workspace_day: int
    workspace_minute: int


def effective_limits(key: ApiKey) -> Limits:
    """What is enforced.

    A workspace without a confirmed e-mail is on trial: however many keys it makes, they share the
    trial's minute and day. So do the test keys of any workspace, among themselves. A key that
    operators raised above its workspace's minute has its own.
    """
    minute, day = key.rate_limit_per_minute, key.rate_limit_per_day
    workspace_day = key.workspace.day_quota
    workspace_minute = key.workspace.minute_limit
    if not key.workspace.is_confirmed or key.is_test:
        minute = min(minute, settings.TRIAL_RATE_LIMIT_PER_MINUTE)
        workspace_minute = min(workspace_minute, settings.TRIAL_RATE_LIMIT_PER_MINUTE)
        day = min(day, settings.TRIAL_RATE_LIMIT_PER_DAY)
        workspace_day = min(workspace_day, settings.TRIAL_RATE_LIMIT_PER_DAY)
    return Limits(minute, day, workspace_day, max(workspace_minute, minute))


class UsageLog(models.Model):
    """One answered request of a key. No text, and no foreign key: the log must not slow a tenant.

    Durations are milliseconds, sizes bytes. The verdict's columns are empty where none was given.
    """

    request_id = models.UUIDField()
    api_key_id = models.UUIDField()
    workspace_id = models.UUIDField()
    endpoint = models.CharField(max_length=64)
    http_status = models.PositiveSmallIntegerField()
    error_code = models.CharField(max_length=40, blank=True, default="")
    request_size = models.PositiveIntegerField()
    response_time_ms = models.FloatField()
    upstream_ms = models.FloatField(default=0)
    status = models.CharField(max_length=10, blank=True, default="")
    source = models.CharField(max_length=10, blank=True, default="")
    decision = models.CharField(max_length=10, blank=True, default="")
    is_malicious = models.BooleanField(null=True)
    confidence = models.FloatField(null=True)
    cached = models.BooleanField(default=False, db_default=False)
    why = models.JSONField(
        default=dict,
        db_default=models.Value({}, models.JSONField()),
        blank=True,
        help_text="What can be said of it without its text: `accounts/usage/why.py`.",
    )
    created_at = models.DateTimeField()

    class Meta:
        verbose_name = "request"
        # On PostgreSQL partitioned by day of `created_at` (migration 0005): rows go with their
        # partition, and only queries that name a time are cheap.
        indexes = [
            models.Index(fields=["workspace_id", "created_at"], name="usage_workspace_time"),
            models.Index(fields=["api_key_id", "created_at"], name="usage_key_time"),
            models.Index(fields=["created_at"], name="usage_time"),
            models.Index(
                fields=["created_at"], name="usage_errors", condition=Q(http_status__gte=400)
            ),
            models.Index(
                fields=["created_at"], name="usage_flagged", condition=Q(is_malicious=True)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.endpoint} {self.http_status} {self.request_id}"


class LogExport(models.Model):
    """A file of the log that is written behind the request, and told of by mail.

    `conditions` are those of `accounts.usage.reading.page`, as JSON; `cursor` is how far it is.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="exports")
    asked_by = models.EmailField()
    link = models.CharField(max_length=500, help_text="Where its file will be.")
    conditions = models.JSONField(default=dict)
    cursor = models.CharField(max_length=200, blank=True, default="", db_default="")
    rows = models.PositiveBigIntegerField(default=0, db_default=0)
    parts = models.PositiveIntegerField(default=0, db_default=0)
    size = models.PositiveBigIntegerField(default=0, db_default=0, help_text="Bytes, compressed.")
    is_cut = models.BooleanField(default=False, db_default=False)
    created_at = models.DateTimeField(default=clock.now, db_default=Now(), editable=False)
    finished_at = models.DateTimeField(null=True)
    told_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["created_at"], name="log_export_time"),
            models.Index(
                fields=["created_at"], name="log_export_waiting", condition=Q(told_at=None)
            ),
        ]

    def __str__(self) -> str:
        return f"export {self.pk}"


class LogExportPart(models.Model):
    """A piece of its file: lines of JSON, gzip; pieces one after the other are one file."""

    export = models.ForeignKey(
        LogExport, on_delete=models.CASCADE, related_name="content", db_index=False
    )
    number = models.PositiveIntegerField()
    content = models.BinaryField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["export", "number"], name="log_export_part_once"),
        ]

    def __str__(self) -> str:
        return f"part {self.number} of {self.export_id}"


class StoredText(models.Model):
    """The text of a request whose key's policy asks for it (`store_text`), encrypted."""

    request_id = models.UUIDField(primary_key=True)
    workspace_id = models.UUIDField()
    encrypted = models.TextField()
    created_at = models.DateTimeField(db_index=True)

    class Meta:
        indexes = [models.Index(fields=["workspace_id"], name="stored_text_workspace")]

    def __str__(self) -> str:
        return f"text of {self.request_id}"


class Parked(models.Model):
    """What a store refused, put aside so that it keeps nobody else's waiting (`parking.py`).

    `payload` is encrypted; `payload_bytes` is how much there was, of which only so much is kept.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=40)
    origin = models.CharField(max_length=100)
    # Not held by the database: the workspace may be what was wrong.
    workspace = models.ForeignKey(
        Workspace,
        on_delete=models.CASCADE,
        null=True,
        related_name="parked",
        db_constraint=False,
    )
    error = models.CharField(max_length=300)
    payload = models.TextField(blank=True, db_default="", default="")
    payload_bytes = models.PositiveBigIntegerField(db_default=0, default=0)
    attempts = models.PositiveSmallIntegerField(
        db_default=0, default=0, help_text="How often it was run again, in vain."
    )
    created_at = models.DateTimeField(default=clock.now, db_default=Now(), editable=False)

    class Meta:
        verbose_name_plural = "parked"
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["kind", "-id"], name="parked_kind"),
            models.Index(fields=["created_at"], name="parked_time"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.origin}"


class SecretInUse(models.Model):
    """That stored things may need a secret of the settings; the secret itself is not here.

    `name`: of a pepper its version, of an encryption key its fingerprint of 32 bits, which tells
    two apart and finds none.
    """

    setting = models.CharField(max_length=40)
    name = models.CharField(max_length=20)
    fingerprint = models.CharField(max_length=20)
    since = models.DateTimeField(default=clock.now, db_default=Now(), editable=False)

    class Meta:
        verbose_name_plural = "secrets in use"
        constraints = [
            models.UniqueConstraint(fields=["setting", "name"], name="secret_in_use_once"),
        ]

    def __str__(self) -> str:
        return f"{self.setting} {self.name}"


class UsageBatch(models.Model):
    """Batches of the log that are written, so that none is written twice; kept for a day."""

    id = models.UUIDField(primary_key=True)
    written_at = models.DateTimeField(default=clock.now, db_index=True)

    def __str__(self) -> str:
        return str(self.id)


class UnsummedUsage(models.Model):
    """What sums are made of, of rows of the log that are in none yet (`accounts/usage/rollups.py`).

    PostgreSQL only, and only while there is much of many keys: for a few seconds.
    """

    part = models.PositiveSmallIntegerField()
    created_at = models.DateTimeField()
    api_key_id = models.UUIDField()
    workspace_id = models.UUIDField()
    endpoint = models.CharField(max_length=64)
    http_status = models.PositiveSmallIntegerField()
    status = models.CharField(max_length=10)
    is_malicious = models.BooleanField(null=True)
    cached = models.BooleanField()
    request_size = models.PositiveIntegerField()
    response_time_ms = models.FloatField()
    confidence = models.FloatField(null=True)

    def __str__(self) -> str:
        return f"{self.endpoint} {self.http_status} of {self.api_key_id}"


class Period(models.TextChoices):
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


class Rollup(models.Model):
    """Sums of the log for one subject, by minute, hour and day (UTC).

    The subject is a key, a workspace, or `usage_log.EVERYTHING`: each request is in three sums, so
    that no page adds up thousands of keys.
    """

    period = models.CharField(max_length=6, choices=Period)
    bucket = models.DateTimeField()
    subject_id = models.UUIDField()

    class Meta:
        abstract = True


class UsageRollup(Rollup):
    """For each endpoint and status. `latency_NN` count requests by `usage_log.LATENCY_MS`."""

    endpoint = models.CharField(max_length=64)
    http_status = models.PositiveSmallIntegerField()
    requests = models.PositiveBigIntegerField()
    flagged = models.PositiveBigIntegerField()
    degraded = models.PositiveBigIntegerField()
    cached = models.PositiveBigIntegerField()
    request_bytes = models.PositiveBigIntegerField()
    latency_ms_sum = models.FloatField()
    latency_00 = models.PositiveBigIntegerField()
    latency_01 = models.PositiveBigIntegerField()
    latency_02 = models.PositiveBigIntegerField()
    latency_03 = models.PositiveBigIntegerField()
    latency_04 = models.PositiveBigIntegerField()
    latency_05 = models.PositiveBigIntegerField()
    latency_06 = models.PositiveBigIntegerField()
    latency_07 = models.PositiveBigIntegerField()
    latency_08 = models.PositiveBigIntegerField()
    latency_09 = models.PositiveBigIntegerField()
    latency_10 = models.PositiveBigIntegerField()
    latency_11 = models.PositiveBigIntegerField()
    latency_12 = models.PositiveBigIntegerField()
    latency_13 = models.PositiveBigIntegerField()
    latency_14 = models.PositiveBigIntegerField()

    class Meta:
        verbose_name = "sum of requests"
        verbose_name_plural = "sums of requests"
        constraints = [
            models.UniqueConstraint(
                fields=["period", "subject_id", "bucket", "endpoint", "http_status"],
                name="usage_rollup_once",
            ),
        ]
        indexes = [models.Index(fields=["period", "bucket"], name="usage_rollup_time")]

    def __str__(self) -> str:
        return f"{self.requests} requests in the {self.period} of {self.bucket}"


class ScoreRollup(Rollup):
    """How many verdicts had a score in one hundredth (`bin` 0 to 99)."""

    bin = models.PositiveSmallIntegerField()
    count = models.PositiveBigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["period", "subject_id", "bucket", "bin"], name="score_rollup_once"
            ),
        ]
        indexes = [models.Index(fields=["period", "bucket"], name="score_rollup_time")]

    def __str__(self) -> str:
        return f"{self.count} scores of {self.bin} % in the {self.period} of {self.bucket}"


class AppendOnly(models.Model):
    """Rows that are written once: the ORM refuses to change or delete them one by one."""

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            self._refuse()
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} rows are never changed or deleted")


class AuditEvent(AppendOnly):
    """Who did what to what. `details` never holds secrets or customers' texts."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    at = models.DateTimeField(default=clock.now, db_index=True)
    action = models.CharField(max_length=60)
    actor = models.CharField(max_length=254, help_text="E-mail, key prefix, or the command.")
    # Without a constraint: a deleted workspace's id stays, and its rows need not be written anew.
    workspace = models.ForeignKey(
        Workspace,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        null=True,
        blank=True,
        related_name="audit_events",
    )
    target = models.CharField(max_length=100, blank=True, default="")
    client_ip = models.GenericIPAddressField(null=True, blank=True)
    request_id = models.CharField(max_length=36, blank=True, default="")
    details = models.JSONField(default=dict, blank=True)
    number = models.PositiveBigIntegerField(
        null=True, editable=False, help_text="In the chain of its workspace; empty: not sealed yet."
    )
    digest = models.CharField(
        max_length=64,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="SHA-256 of the row and of the digest before it (`accounts/audit.py`).",
    )

    class Meta:
        ordering = ["-at"]
        indexes = [
            models.Index(fields=["id"], name="audit_unsealed", condition=Q(number=None)),
            models.Index(fields=["workspace", "-at", "-id"], name="audit_workspace_time"),
            models.Index(
                fields=["workspace", "number"],
                name="audit_chain",
                condition=Q(number__isnull=False),
            ),
            models.Index(fields=["action", "at"], name="audit_action_time"),
            models.Index(fields=["actor", "at"], name="audit_actor_time"),
            models.Index(fields=["target", "at"], name="audit_target_time"),
            models.Index(fields=["request_id"], name="audit_request"),
        ]

    def __str__(self) -> str:
        return f"{self.action} by {self.actor}"


class AuditChain(models.Model):
    """The ends of a workspace's chain of audit rows; of id 0: of those that belong to none."""

    id = models.UUIDField(primary_key=True)
    number = models.PositiveBigIntegerField(db_default=0, default=0)
    digest = models.CharField(max_length=64, blank=True, db_default="", default="")
    # The last row that went past its time: the chain begins behind it.
    forgotten = models.PositiveBigIntegerField(db_default=0, default=0)
    forgotten_digest = models.CharField(max_length=64, blank=True, db_default="", default="")

    def __str__(self) -> str:
        return f"{self.number} of {self.pk}"


class QuotaNotice(models.Model):
    """That a share of a day's quota is used up was told: once for each day and set of counters.

    `subject_id` is a key, or the first of those that replaced each other; or a workspace.
    """

    subject_id = models.UUIDField()
    day = models.DateField()
    percent = models.PositiveSmallIntegerField()
    untold = models.JSONField(
        null=True, help_text="The addresses that the mail has not reached yet; empty: all."
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["subject_id", "day", "percent"], name="quota_notice_once"
            ),
        ]
        indexes = [models.Index(fields=["day"], name="quota_notice_day")]

    def __str__(self) -> str:
        return f"{self.percent} % on {self.day}"


class OutboxEvent(models.Model):
    """A fact to tell the customer, written in the transaction of the fact itself.

    `body` is the event as it will be sent: `{id, type, timestamp, request_id?, api_key_id?, data}`.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    workspace = models.ForeignKey(
        Workspace, on_delete=models.CASCADE, related_name="outbox", db_index=False
    )
    type = models.CharField(max_length=60)
    body = models.JSONField()
    deliver_to = models.CharField(
        max_length=2048,
        blank=True,
        default="",
        db_default="",
        help_text="The one address that it goes to; empty: to whoever listens.",
    )
    traceparent = models.CharField(
        max_length=55,
        blank=True,
        default="",
        db_default="",
        help_text="The span that its fact is of (W3C Trace Context), for whoever is told.",
    )
    created_at = models.DateTimeField(default=clock.now)
    published_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [
            models.Index(
                fields=["created_at"], name="outbox_waiting", condition=Q(published_at=None)
            ),
            models.Index(
                fields=["workspace", "created_at"],
                name="outbox_turn",
                condition=Q(published_at=None),
            ),
            models.Index(
                fields=["created_at"],
                name="outbox_published",
                condition=Q(published_at__isnull=False),
            ),
            models.Index(fields=["workspace", "created_at"], name="outbox_workspace_time"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class IdempotencyRecord(models.Model):
    """What a request with an `Idempotency-Key` was answered, for whoever sends it again.

    An answer that holds a secret is encrypted, and erased after an hour.
    """

    workspace = models.ForeignKey(Workspace, on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(max_length=64, help_text="Digest of method, path and body.")
    status = models.PositiveSmallIntegerField()
    headers = models.JSONField(default=dict)
    body = models.TextField()
    holds_secret = models.BooleanField(default=False, db_default=False)
    created_at = models.DateTimeField(default=clock.now, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["workspace", "key"], name="idempotency_once"),
        ]
        indexes = [
            models.Index(
                fields=["created_at"],
                condition=models.Q(holds_secret=True) & ~models.Q(body=""),
                name="idempotency_secrets",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.key} of {self.workspace_id}"
