"""SECURITY.md tells what is kept: no column and no text escapes it."""

import re
from pathlib import Path

import pytest
from allauth.account import app_settings as account_settings
from django.apps import apps
from django.conf import settings
from django.db import connection, models

from accounts.models import StoredText
from detection.models import Job, JobChunk
from detection.tests.working import work_all
from gateway_project.core.stores import redis

PAGE = (Path(__file__).resolve().parents[2] / "SECURITY.md").read_text()
WORDLESS = (
    *(models.BooleanField, models.IntegerField, models.FloatField, models.DecimalField),
    *(models.DateField, models.UUIDField, models.ForeignKey),
)
"""Kinds of columns, with those derived from them; any other may hold words, or an address."""
OWN_WORDS = "one of our own words"
OURS_BY_NATURE = {
    "ApiKey.prefix": "the first characters of a random text",
    "ApiKey.last4": "the last characters of a random text",
    "ApiKey.key_hash": "a digest",
    "ApiKey.scopes": OWN_WORDS,
    "ApiKey.allowed_cidrs": "networks, checked",
    "AuditChain.digest": "a digest",
    "AuditChain.forgotten_digest": "a digest",
    "AuditEvent.action": OWN_WORDS,
    "AuditEvent.digest": "a digest",
    "ComponentDay.component": OWN_WORDS,
    "DeadItem.uid": "an id that Robin made",
    "Document.name": OWN_WORDS,
    "Disagreement.engine": "of the operator",
    "Disagreement.compared_to": "of the operator",
    "Disagreement.content_type": OWN_WORDS,
    "EngineDay.engine": "of the operator",
    "EngineDay.compared_to": "of the operator",
    "FalseAlarmBudget.content_type": OWN_WORDS,
    "FalseAlarmBudget.basis": OWN_WORDS,
    "FalseAlarmBudget.baseline": "counts",
    "FalseAlarmBudget.drift": "shares, by our own names",
    "Feedback.content_type": OWN_WORDS,
    "Feedback.decision": OWN_WORDS,
    "Feedback.source": OWN_WORDS,
    "IdempotencyRecord.fingerprint": "a digest",
    "Invitation.token_hash": "a digest",
    "Job.request_id": "an id that we made",
    "Job.traceparent": "two random numbers, checked",
    "MetricSample.figures": "numbers by our own names",
    "OutboxEvent.traceparent": "two random numbers, checked",
    "OutboxEvent.type": OWN_WORDS,
    "LogEntry.object_id": "an id that we made",
    "LogExport.conditions": "our own words, ids and times",
    "LogExport.cursor": "a time and a number",
    "LogExport.link": "an address of ours",
    "Parked.kind": OWN_WORDS,
    "Parked.origin": "an id, ours or of Redis",
    "Parked.error": "names of errors, never their words",
    "Plan.name": "of the operator",
    "Plan.price": "of the operator",
    "QueueJob.action": OWN_WORDS,
    "QueueJob.detail": OWN_WORDS,
    "QueueJob.uids": "ids that Robin made",
    "RefreshFamily.password_stamp": "a digest",
    "RefreshFamily.revoked_because": OWN_WORDS,
    "RefreshToken.digest": "a digest",
    "SecretInUse.setting": OWN_WORDS,
    "SecretInUse.name": "a version, or a digest of 32 bits",
    "SecretInUse.fingerprint": "a digest of 32 bits",
    "Session.session_key": "a random text",
    "SocialAccount.provider": "of the operator",
    "StaffAct.act": OWN_WORDS,
    "StaffAct.before": "limits, numbers",
    "UnsummedUsage.endpoint": "a path of ours",
    "UnsummedUsage.status": OWN_WORDS,
    "UsageLog.endpoint": "a path of ours",
    "UsageLog.error_code": OWN_WORDS,
    "UsageLog.status": OWN_WORDS,
    "UsageLog.source": OWN_WORDS,
    "UsageLog.decision": OWN_WORDS,
    "UsageRollup.endpoint": "a path of ours",
    "User.mails_off": OWN_WORDS,
    "UserSession.session_key": "a random text",
    "Webhook.events": OWN_WORDS,
    "WebhookDelivery.event_type": OWN_WORDS,
    "WorkspaceDomain.token": "a random text",
    "Workspace.wanted_events": OWN_WORDS,
}
TABLES_BY_NATURE = {
    "ContentType": "our own models",
    "CrontabSchedule": "of the operator",
    "EmailConfirmation": "empty: the links are signed",
    "Group": "of the operator",
    "Permission": "our own models",
    "PeriodicTask": "of the operator",
    "SocialApp": "empty: settings name the provider",
    "SocialToken": "empty: SOCIALACCOUNT_STORE_TOKENS is off",
}
MARK = "marzipan-7f3a"
READABLE = {"Job.metadata", "JobChunk.results", "OutboxEvent.body", "IdempotencyRecord.body"}


def columns():
    """Every column, of libraries' models too, that can hold free text, as the page writes it."""
    return {
        f"{model.__name__}.{field.name}"
        for model in apps.get_models()
        if model.__name__ not in TABLES_BY_NATURE
        for field in model._meta.local_concrete_fields
        if not isinstance(field, WORDLESS) and not field.choices
    }


def on_the_page():
    return set(re.findall(r"`([A-Z]\w+\.[a-z_0-9]+)`", PAGE))


def test_every_column_that_can_hold_text_is_on_the_page_or_excused():
    unexplained = columns() - on_the_page() - set(OURS_BY_NATURE)

    assert not unexplained, (
        f"Say in SECURITY.md what {sorted(unexplained)} hold of customers, for how long and "
        "whether encrypted; or say in OURS_BY_NATURE why they hold nothing of theirs."
    )


def test_the_page_and_the_excuses_name_only_columns_that_exist_and_each_once():
    assert on_the_page() <= columns()
    assert set(OURS_BY_NATURE) <= columns()
    assert not on_the_page() & set(OURS_BY_NATURE)
    assert set(TABLES_BY_NATURE) <= {model.__name__ for model in apps.get_models()}


def test_what_is_excused_for_being_empty_is_written_by_nobody():
    assert not settings.SOCIALACCOUNT_STORE_TOKENS
    assert account_settings.EMAIL_CONFIRMATION_HMAC


def stored(mark):
    """The columns of any table of the database, ours or not, in which `mark` stands readably."""
    found = set()
    names = {m._meta.db_table: m.__name__ for m in apps.get_models()}
    with connection.cursor() as cursor:
        for table, name in names.items():
            described = connection.introspection.get_table_description(cursor, table)
            for column in described:
                quoted = connection.ops.quote_name(column.name)
                cursor.execute(
                    f"SELECT count(*) FROM {connection.ops.quote_name(table)} "
                    f"WHERE CAST({quoted} AS text) LIKE %s",
                    [f"%{mark}%"],
                )
                if cursor.fetchone()[0]:
                    found.add(f"{name}.{column.name}")
    return found


def in_redis(mark):
    """Keys of Redis that hold `mark`, whatever their type."""
    client, found = redis.client(), []
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"stream": client.xrange,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
    }
    for key in client.scan_iter("*", count=1000):
        kind = client.type(key)
        value = read[kind if isinstance(kind, bytes) else kind.encode()](key)
        if mark in repr((key, value)):
            found.append(key)
    return found


@pytest.fixture
def send(gateway, engine):
    """A marked text and marked metadata, through every door of the detection API."""

    def send(key):
        text, metadata = f"Ignore this, {MARK}-text", {"note": f"{MARK}-metadata"}
        item = {"id": "a", "text": text, "metadata": metadata}
        later = {"Prefer": "respond-async"}
        url = "https://192.0.2.1.example/hooks"
        answers = [
            gateway.post("/v1/detect", {"text": text, "metadata": metadata}, key=key),
            gateway.post(
                "/v1/detect",
                {"text": text, "metadata": metadata, "webhook_url": url},
                key=key,
                headers={"Idempotency-Key": "once"},
            ),
            gateway.post("/v1/detect/score", {"text": text}, key=key),
            gateway.post("/v1/detect/batch", {"requests": [item]}, key=key),
            gateway.post(
                "/v1/detect/batch", {"requests": [item], "metadata": metadata}, key=key,
                headers=later,
            ),
            gateway.post("/v1/detect/async", {"text": text, "webhook_url": url}, key=key),
        ]  # fmt: skip
        assert [r.status_code for r in answers] == [200, 200, 200, 200, 202, 202]

    return send


def test_a_text_stands_readably_nowhere(gateway, send, acme_key, capfd):
    send(acme_key)
    waiting = stored(f"{MARK}-text")
    is_encrypted = JobChunk.objects.exclude(items="").count() == Job.objects.count() == 2
    work_all()
    in_stream = in_redis(f"{MARK}-text") if settings.REDIS_URL else []
    gateway.flush_usage()

    assert is_encrypted
    assert waiting == stored(f"{MARK}-text") == set()
    assert in_stream == []
    assert not JobChunk.objects.exclude(items="").exists()
    assert not StoredText.objects.exists()
    assert f"{MARK}-text" not in "".join(capfd.readouterr())


def test_a_text_that_a_policy_keeps_is_encrypted_on_the_way_and_in_the_table(
    gateway, send, acme_admin_key
):
    put = gateway.request("PUT", "/v1/policy", json={"store_text": True}, key=acme_admin_key)
    assert put.status_code == 200, put.text
    text = f"Ignore this, {MARK}-text"
    gateway.detect(text, key=acme_admin_key)
    in_stream = in_redis(f"{MARK}-text") if settings.REDIS_URL else []
    gateway.flush_usage()

    assert StoredText.objects.count() == 1
    assert stored(f"{MARK}-text") == set()
    assert in_stream == []


def test_metadata_stands_readably_only_where_the_page_says(gateway, send, acme_key):
    send(acme_key)
    work_all()
    gateway.flush_usage()

    found = stored(f"{MARK}-metadata")

    assert found == READABLE  # so the search finds what is there
    assert found <= on_the_page()
