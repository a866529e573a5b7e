"""What grows has an end, a vacuum of its own, and can be deleted without reading whole tables."""

from __future__ import annotations

from datetime import timedelta

import pytest
from allauth.usersessions.models import UserSession
from celery import current_app
from django.apps import apps
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.sessions.models import Session
from django.db import connection, models
from django.utils import timezone

from accounts.models import (
    ApiKey,
    AuditEvent,
    IdempotencyRecord,
    Invitation,
    LogExport,
    OutboxEvent,
    Parked,
    QuotaNotice,
    ScoreRollup,
    StoredText,
    UsageBatch,
    UsageRollup,
    new_id,
)
from accounts.usage.rollups import EVERYTHING, SUMS
from detection.models import Disagreement, EngineDay, Feedback, Job, JobChunk, PolicyVersion
from robin.models import AlarmNotice, MetricSample, QueueJob, RefreshFamily, RefreshToken
from webhooks.models import Webhook, WebhookAttempt, WebhookDelivery, WebhookNotice

pytestmark = pytest.mark.hostile
A_CUSTOMERS = "as long as the account or workspace that it belongs to; nothing adds to it by itself"
FEW = "as many as somebody of staff makes"
BOUNDED = {
    "accounts.ApiKey": A_CUSTOMERS,
    "accounts.Membership": A_CUSTOMERS,
    "accounts.Plan": FEW,
    "accounts.SecretInUse": "as many as there are secrets in the settings",
    "accounts.UnsummedUsage": "for seconds, till the worker has added it up",
    "accounts.UsageLog": "its partitions are dropped",
    "accounts.User": A_CUSTOMERS,
    "accounts.Workspace": A_CUSTOMERS,
    "accounts.LogExportPart": "with its file",
    "accounts.AuditChain": "one of each workspace",
    "socialaccount.SocialAccount": A_CUSTOMERS,
    "socialaccount.SocialApp": FEW,
    "socialaccount.SocialToken": "none is stored",
    "accounts.WorkspaceDomain": "at most 20 of a workspace",
    "account.EmailAddress": A_CUSTOMERS,
    "account.EmailConfirmation": "none is made: links are signed, and not stored",
    "admin.LogEntry": "forgotten with the audit trail",
    "auth.Group": FEW,
    "auth.Permission": "of the code",
    "contenttypes.ContentType": "of the code",
    "mfa.Authenticator": A_CUSTOMERS,
    "portal.Announcement": FEW,
    "portal.ComponentDay": "one of each component and day, for `availability.KEPT`",
    "portal.Incident": FEW,
    "portal.IncidentUpdate": FEW,
    "portal.Mailing": FEW,
    "portal.PlanProposal": FEW,
    "portal.StaffAct": FEW,
    "portal.StaffNote": FEW,
    "robin.AlarmRecipient": FEW,
    "detection.FalseAlarmBudget": "one for each key and type of text",
    "robin.BlocklistEntry": FEW,
    "robin.QueueAlarm": "one of each kind",
    "robin.DeadItem": "as many as Robin has",
    "robin.Document": "of the code",
    "robin.RobinAccess": A_CUSTOMERS,
    "robin.SeenItem": "as many as Robin has; gone a few rounds after the item",
    "webhooks.Inbox": A_CUSTOMERS,
    "webhooks.InboxRequest": "the last 50 of each inbox",
    "webhooks.Webhook": A_CUSTOMERS,
    "webhooks.WebhookSecret": "ten of each webhook",
}
"""Models whose rows nothing has to forget, and why."""
LONG_AGO = timedelta(days=1_000)


def forget():
    """A round of all that beat sends to forget things."""
    current_app.loader.import_default_modules()
    for entry in settings.CELERY_BEAT_SCHEDULE.values():
        name = entry["task"].rpartition(".")[2]
        if name.startswith(("prune", "tend")):
            current_app.tasks[entry["task"]].run()


@pytest.fixture
def old(acme, alice, acme_key, charlie):
    """One row of every model that something forgets, long past its time."""
    at = timezone.now() - LONG_AGO
    key = acme_key.row
    Session.objects.create(session_key="old", session_data="", expire_date=at)
    for name in ("old", "signed-out"):
        UserSession.objects.create(
            user=alice, session_key=name, ip="127.0.0.1", user_agent="", created_at=at
        )
    UserSession.objects.update(created_at=at)
    LogEntry.objects.create(user=alice, object_repr="x", action_flag=2, action_time=at)
    AuditEvent.objects.bulk_create([AuditEvent(action="a", actor="b", workspace=acme)])
    AuditEvent.objects.update(at=at)
    IdempotencyRecord.objects.create(
        workspace=acme, key="k", fingerprint="", status=200, body="", created_at=at
    )
    LogExport.objects.create(workspace=acme, asked_by="x@x.example", link="", created_at=at)
    Invitation.objects.create(
        workspace=acme, email="x@x.example", role="member", token_hash="x", expires_at=at
    )
    QuotaNotice.objects.create(subject_id=key.pk, day=at.date(), percent=80)
    UsageBatch.objects.create(id=new_id(), written_at=at)
    StoredText.objects.create(
        request_id=new_id(), workspace_id=acme.pk, encrypted="x", created_at=at
    )
    for period in ("minute", "hour", "day"):
        known = {"period": period, "bucket": at, "subject_id": EVERYTHING}
        UsageRollup.objects.create(
            **known, endpoint="/x", http_status=200, **dict.fromkeys(SUMS, 1)
        )
        ScoreRollup.objects.create(**known, bin=1, count=1)
    Parked.objects.create(kind="usage.row", origin="x", error="x", created_at=at)
    services_key(acme, at)
    Feedback.objects.create(
        workspace=acme, request_id=new_id(), api_key_id=key.pk, verdict="correct",
        confidence=0.5, is_malicious=False, decision="allow", source="engine", created_at=at,
    )  # fmt: skip
    ids = {"api_key_id": key.pk, "workspace_id": acme.pk, "engine": "judge", "compared_to": "x"}
    EngineDay.objects.create(**ids, day=at.date(), role="shadow")
    Disagreement.objects.create(
        **ids, request_id=new_id(), content_type="user_input", own_score=0.1, shadow_score=0.9,
        is_malicious=False, created_at=at,
    )  # fmt: skip
    for version in (1, 2):
        PolicyVersion.objects.create(
            subject_id=key.pk, version=version, api_key=key, policy={}, actor="x", created_at=at
        )
    job = Job.objects.create(
        workspace=acme, api_key_id=key.pk, total=1, request_id="", expires_at=at
    )
    JobChunk.objects.create(job=job, number=0, first=0, size=1)
    MetricSample.objects.create(at=at, figures={})
    QueueJob.objects.create(
        action="retry", state="complete", created_by=charlie, requested=1, uids=b"", finished_at=at
    )
    AlarmNotice.objects.create(kind="dead", value=9, threshold=5, since=at, at=at)
    family = RefreshFamily.objects.create(user=charlie, password_stamp="x", expires_at=at)
    parent = None
    for number in range(3):
        parent = RefreshToken.objects.create(
            family=family, digest=str(number), parent=parent, issued_at=at, expires_at=at
        )
    webhook = Webhook.objects.create(workspace=acme, url="https://a.example", events=[])
    WebhookNotice.objects.create(webhook=webhook, kind="failing", created_at=at)
    event = OutboxEvent.objects.create(
        workspace=acme, type="x", body={}, created_at=at, published_at=at
    )
    delivery = WebhookDelivery.objects.create(
        webhook=webhook, event=event, event_type="x", status="delivered", steps_max=1
    )
    WebhookAttempt.objects.create(delivery=delivery, at=at, duration_ms=1)


def services_key(workspace, at):
    ApiKey.objects.create(
        workspace=workspace, prefix="x", last4="x", key_hash="x", pepper_version=1,
        is_session=True, expires_at=at,
    )  # fmt: skip


def growing():
    """Models that have a table of ours or of a library, but for those that are `BOUNDED`."""
    return {
        f"{model._meta.app_label}.{model.__name__}": model
        for model in apps.get_models()
        if model._meta.managed
        and not model._meta.auto_created
        and model._meta.app_label != "django_celery_beat"
        and f"{model._meta.app_label}.{model.__name__}" not in BOUNDED
    }


@pytest.mark.django_db(transaction=True)
def test_every_model_is_bounded_or_forgets(old):
    before = {name for name, model in growing().items() if model._base_manager.exists()}

    forget()

    kept = {name: model._base_manager.count() for name, model in growing().items()}
    assert before == set(growing()), "`old` makes none of these: say in BOUNDED why they end"
    assert {name: n for name, n in kept.items() if n} == {"detection.PolicyVersion": 1}  # in force
    assert LogEntry.objects.count() == 0
    assert ApiKey.objects.filter(is_session=True).count() == 0


def test_what_is_bounded_exists():
    known = {f"{model._meta.app_label}.{model.__name__}" for model in apps.get_models()}

    assert set(BOUNDED) <= known


@pytest.mark.django_db(transaction=True)
def test_nothing_is_forgotten_where_zero_days_are_set(old, settings):
    for name in ("STATISTICS", "AUDIT", "FEEDBACK"):
        setattr(settings, f"{name}_RETENTION_DAYS", 0)

    forget()

    assert UsageRollup.objects.filter(period="day").count() == 1
    assert AuditEvent.objects.filter(action="a").count() == 1
    assert (Feedback.objects.count(), PolicyVersion.objects.count()) == (1, 2)


@pytest.mark.needs_postgresql
@pytest.mark.django_db
def test_tables_that_grow_are_vacuumed_before_a_fifth_of_them_is_dead():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname FROM pg_class WHERE array_to_string(reloptions, ' ') LIKE "
            "'%autovacuum_vacuum_scale_factor%'"
        )
        tuned = {name for (name,) in cursor.fetchall()}

    assert {model._meta.db_table for model in growing().values()} <= tuned


@pytest.mark.needs_postgresql
@pytest.mark.django_db
def test_every_foreign_key_has_an_index_that_begins_with_it():
    """Else whoever deletes what it leads to reads its whole table."""
    missing = []
    for model in apps.get_models(include_auto_created=True):
        if model._meta.app_label == "django_celery_beat":
            continue
        with connection.cursor() as cursor:
            constraints = connection.introspection.get_constraints(cursor, model._meta.db_table)
        first = {
            found["columns"][0]
            for found in constraints.values()
            if (found["index"] or found["unique"] or found["primary_key"]) and found["columns"]
        }
        missing += [
            f"{model.__name__}.{field.name}"
            for field in model._meta.local_concrete_fields
            if isinstance(field, models.ForeignKey)
            and field.remote_field.on_delete in (models.CASCADE, models.SET_NULL)
            and field.column not in first
        ]

    assert missing == []
