"""Mails to the owners of a webhook."""

from __future__ import annotations

from datetime import timedelta
from smtplib import SMTPException

import pytest
from django.core import mail
from django.utils import timezone

from accounts.events import publish
from accounts.models import Membership
from webhooks import services, tasks
from webhooks.delivery import engine, notices
from webhooks.models import Webhook, WebhookDelivery, WebhookNotice
from webhooks.tests.conftest import ACTOR
from webhooks.tests.receiver import Answer


def fail(acme, receiver, attempts):
    receiver.answers(Answer(503, body=b"<b>secret of theirs</b>"))
    publish(acme, "detection.completed", result={})
    for _ in range(attempts):
        engine.deliver_all()
        WebhookDelivery.objects.filter(status="pending").update(next_attempt_at=timezone.now())


def test_it_is_said_after_the_fourth_attempt_once(acme, webhook, receiver):
    fail(acme, receiver, 3)
    assert tasks.send_notices() == 0
    fail(acme, receiver, 5)

    assert [tasks.send_notices(), tasks.send_notices()] == [1, 0]

    [sent] = mail.outbox
    assert sent.to == ["alice@acme.example"]
    assert sent.subject == "A webhook of Acme is failing"
    assert webhook.url in sent.body
    assert "HTTP 503" in sent.body
    assert f"/webhooks/{webhook.pk}/deliveries" in sent.body
    assert webhook.secret not in sent.body
    assert "secret of theirs" not in sent.body


def test_after_a_success_it_may_be_said_again(acme, webhook, receiver):
    fail(acme, receiver, 4)
    receiver.answers(200)
    engine.deliver_all()
    fail(acme, receiver, 4)

    assert tasks.send_notices() == 2


def test_disabled_and_enabled_are_reported(acme, webhook, receiver):
    receiver.answers(410)
    publish(acme, "detection.completed", result={})
    engine.deliver_all()
    receiver.answers(200)
    services.enable(Webhook.objects.get(), actor=ACTOR)

    assert tasks.send_notices() == 2

    assert [sent.subject for sent in mail.outbox] == [
        "A webhook of Acme was disabled",
        "A webhook of Acme is enabled again",
    ]
    assert "410 Gone" in mail.outbox[0].body
    assert '{"is_active": true}' in mail.outbox[0].body
    assert f"/webhooks/{webhook.pk}/recover" in mail.outbox[0].body


def test_owners_and_admins_get_one_each_and_members_none(acme, bob, charlie, webhook):
    Membership.objects.create(workspace=acme, user=charlie, role="admin")
    WebhookNotice.objects.create(webhook=webhook, kind="enabled")

    tasks.send_notices()

    assert [sent.to for sent in mail.outbox] == [["alice@acme.example"], ["charlie@globex.example"]]


def test_an_address_that_nobody_confirmed_gets_none(acme, charlie, webhook):
    Membership.objects.create(workspace=acme, user=charlie, role="admin")
    type(charlie).objects.filter(pk=charlie.pk).update(email_confirmed_at=None)
    WebhookNotice.objects.create(webhook=webhook, kind="enabled")

    tasks.send_notices()

    assert [sent.to for sent in mail.outbox] == [["alice@acme.example"]]


def test_enabling_it_all_day_sends_one_notice_an_hour(webhook, receiver):
    for _ in range(3):
        Webhook.objects.update(is_active=False)
        services.enable(Webhook.objects.get(), actor=ACTOR)
    assert WebhookNotice.objects.filter(kind="enabled").count() == 1

    an_hour_ago = timezone.now() - timedelta(hours=1)
    WebhookNotice.objects.update(created_at=an_hour_ago)
    Webhook.objects.update(is_active=False)
    services.enable(Webhook.objects.get(), actor=ACTOR)
    assert WebhookNotice.objects.filter(kind="enabled").count() == 2


@pytest.mark.parametrize("trouble", [OSError, SMTPException])
def test_a_mail_server_that_is_away_loses_none(webhook, monkeypatch, trouble):
    WebhookNotice.objects.create(webhook=webhook, kind="enabled")

    def away(connection, messages):
        raise trouble

    with monkeypatch.context() as patched:
        patched.setattr("django.core.mail.backends.locmem.EmailBackend.send_messages", away)
        assert tasks.send_notices() == 0
    assert tasks.send_notices() == 0  # claimed; somebody may still be at it
    WebhookNotice.objects.update(claimed_at=timezone.now() - notices.CLAIM - timedelta(seconds=1))

    assert tasks.send_notices() == 1
    assert len(mail.outbox) == 1


def test_a_name_cannot_add_a_header(acme, webhook):
    acme.name = "Acme\r\nBcc: all@example.com"
    acme.save()
    WebhookNotice.objects.create(webhook=webhook, kind="enabled")

    assert tasks.send_notices() == 1
    assert "\n" not in mail.outbox[0].subject
