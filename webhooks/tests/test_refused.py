"""What one workspace's webhook, event or receiver holds stops nobody else's deliveries."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from smtplib import SMTPDataError, SMTPRecipientsRefused, SMTPServerDisconnected

import pytest
from django.core import mail
from django.core.mail.backends import locmem
from django.core.management import call_command
from django.utils import timezone

from accounts.events import publish
from accounts.models import OutboxEvent, Parked
from gateway_project.core.stores import database
from webhooks import keyring
from webhooks.delivery import attempt, engine, notices, outbox
from webhooks.delivery.attempt import Outcome
from webhooks.delivery.results import record
from webhooks.models import Webhook, WebhookAttempt, WebhookDelivery, WebhookNotice
from webhooks.tests.receiver import Answer

pytestmark = pytest.mark.hostile
FAILED, DELIVERED = WebhookDelivery.Status.FAILED, WebhookDelivery.Status.DELIVERED


def tell(workspace):
    return publish(workspace, "detection.completed", result={"is_malicious": True})


@pytest.fixture
def both(make_webhook, globex):
    return make_webhook("/acme"), make_webhook("/globex", workspace=globex)


class TestFanOut:
    @pytest.mark.parametrize("events", [5, True, 7.5])
    def test_a_webhook_that_holds_nonsense(self, acme, globex, both, receiver, events):
        Webhook.objects.filter(pk=both[0].pk).update(events=events)
        bad = tell(acme)
        tell(globex)
        tell(acme)

        engine.deliver_all()
        engine.deliver_all()

        assert [got.path for got in receiver.received] == ["/globex"]
        assert not OutboxEvent.objects.filter(published_at=None).exists()
        assert str(bad.pk) in Parked.objects.values_list("origin", flat=True)
        assert {parked.kind for parked in Parked.objects.all()} == {"webhooks.event"}

    def test_it_goes_out_when_it_is_run_again(self, acme, both, receiver):
        Webhook.objects.filter(pk=both[0].pk).update(events=5)
        tell(acme)
        engine.deliver_all()
        Webhook.objects.filter(pk=both[0].pk).update(events=["detection.completed"])

        call_command("parked", "--rerun")
        engine.deliver_all()

        assert [got.path for got in receiver.received] == ["/acme"]


class TestDelivering:
    def test_one_that_cannot_be_made_ready(self, acme, globex, both, receiver, monkeypatch):
        tell(acme)
        tell(globex)
        usual = attempt.Job

        def job(**facts):
            if facts["webhook_id"] == both[0].pk:
                raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
            return usual(**facts)

        monkeypatch.setattr(attempt, "Job", job)
        engine.deliver_all()
        engine.deliver_all()

        assert [got.path for got in receiver.received] == ["/globex"]
        delivery = WebhookDelivery.objects.get(webhook=both[0])
        assert (delivery.status, delivery.next_attempt_at) == (FAILED, None)
        [parked] = Parked.objects.all()
        assert (parked.kind, parked.origin) == ("webhooks.delivery", str(delivery.pk))
        assert parked.workspace_id == acme.pk

    def test_a_secret_of_another_installation(self, acme, globex, both, receiver):
        both[0].secrets.update(encrypted="\u0142")
        tell(acme)
        tell(globex)

        engine.deliver_all()

        assert [got.path for got in receiver.received] == ["/globex"]
        assert keyring.in_force(both[0]) == ()


@pytest.mark.needs_postgresql
class TestResults:
    @pytest.mark.parametrize(
        "what",
        [
            {"response_body": "\x00"},
            {"error": "\x00"},
            {"error": "x" * 301},
            {"http_status": 70_000},
            {"duration_ms": 2**40},
            {"at": None},
        ],
        ids=str,
    )
    def test_one_that_is_refused_costs_no_other(self, acme, globex, both, receiver, what):
        deliveries = []
        for workspace in (acme, globex):
            tell(workspace)
        outbox.fan_out()
        jobs = outbox.Claims().take(10, {}, 4)
        now = timezone.now()
        fine = Outcome(at=now, duration_ms=1, kind="delivered", http_status=200, ended_at=now)
        mine = both[0].pk
        results = [(job, replace(fine, **what) if job.webhook_id == mine else fine) for job in jobs]

        record(results)

        deliveries = {row.webhook_id: row for row in WebhookDelivery.objects.all()}
        assert deliveries[both[1].pk].status == DELIVERED
        assert WebhookAttempt.objects.filter(delivery__webhook=both[1]).count() == 1
        bad = deliveries[mine]
        assert bad.next_attempt_at is None
        assert bad.status in (DELIVERED, FAILED)
        assert not bad.is_claimed
        assert Parked.objects.filter(origin=str(bad.pk), workspace_id=acme.pk).exists()

    def test_an_answer_full_of_nul_is_kept_readable(self, acme, webhook, receiver):
        receiver.answers(Answer(body=b"a\x00b\xff"))
        tell(acme)

        engine.deliver_all()

        assert WebhookAttempt.objects.get().response_body == "a\ufffdb\ufffd"
        assert not Parked.objects.exists()


class Picky(locmem.EmailBackend):
    """A mail server that has something against some."""

    refusals: dict = {}

    def open(self):
        database.let_go()  # as `gateway_project.mail` does in front of the real ones

    def send_messages(self, messages):
        database.let_go()
        for message in messages:
            for part, error in self.refusals.items():
                if part in message.to[0]:
                    raise error
        return super().send_messages(messages)


class TestNotices:
    @pytest.fixture
    def notice(self, acme, globex, both, settings):
        settings.EMAIL_BACKEND = f"{__name__}.Picky"
        return [WebhookNotice.objects.create(webhook=one, kind="enabled") for one in both]

    @pytest.mark.parametrize(
        "error",
        [
            SMTPRecipientsRefused({"alice@acme.example": (550, b"no such user")}),
            SMTPDataError(554, b"looks like spam"),
            UnicodeEncodeError("ascii", "\u0142", 0, 1, "x"),
            ValueError("a header"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_one_that_the_server_refuses_is_not_tried_for_ever(
        self, acme, notice, monkeypatch, error
    ):
        monkeypatch.setattr(Picky, "refusals", {"@acme": error})

        assert notices.send_waiting() == 1
        assert notices.send_waiting() == 0

        assert [message.to for message in mail.outbox] == [["charlie@globex.example"]]
        [parked] = Parked.objects.all()
        assert (parked.kind, parked.origin) == ("webhooks.notice", str(notice[0].pk))
        monkeypatch.setattr(Picky, "refusals", {})
        call_command("parked", "--rerun")
        assert notices.send_waiting() == 1

    def test_one_owner_who_is_refused_keeps_the_mail_from_no_other(
        self, acme, notice, monkeypatch, bob
    ):
        acme.memberships.filter(user=bob).update(role="owner")
        refused = SMTPRecipientsRefused({"alice@acme.example": (550, b"no such user")})
        monkeypatch.setattr(Picky, "refusals", {"alice": refused})

        notices.send_waiting()

        assert {message.to[0] for message in mail.outbox} == {
            "bob@acme.example",
            "charlie@globex.example",
        }

    @pytest.mark.parametrize(
        "error",
        [
            SMTPServerDisconnected("gone"),
            SMTPDataError(451, b"try later"),
            ConnectionRefusedError(),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_a_server_that_is_away_parks_nothing(self, notice, monkeypatch, error):
        monkeypatch.setattr(Picky, "refusals", {"@": error})

        assert notices.send_waiting() == 0

        assert not Parked.objects.exists()
        assert WebhookNotice.objects.filter(sent_at=None).count() == 2

    def test_an_address_that_is_refused_for_now_keeps_no_other_from_its_mail(
        self, notice, monkeypatch
    ):
        busy = SMTPRecipientsRefused({"alice@acme.example": (450, b"busy")})
        monkeypatch.setattr(Picky, "refusals", {"alice@": busy})

        assert notices.send_waiting() == 1

        assert "charlie@globex.example" in {message.to[0] for message in mail.outbox}
        assert WebhookNotice.objects.filter(sent_at=None).count() == 1
        assert not Parked.objects.exists()

    def test_facts_that_are_none(self, notice):
        WebhookNotice.objects.filter(pk=notice[0].pk).update(facts=5)

        assert notices.send_waiting() == 1

        assert Parked.objects.get().kind == "webhooks.notice"


def test_what_is_long_past_is_refused_as_little_as_anything(acme, webhook):
    """Ends of ranges in what is stored: pruning and claiming go on."""
    event = tell(acme)
    OutboxEvent.objects.filter(pk=event.pk).update(created_at=timezone.now() - timedelta(days=9999))

    assert outbox.fan_out() == 1
    assert outbox.prune(1) == 0  # on its way still
