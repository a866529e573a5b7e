"""Every task that mails in rounds, beside an address that its mail server refuses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from smtplib import SMTPDataError, SMTPRecipientsRefused, SMTPServerDisconnected

import pytest
import time_machine
from django.core import mail

from accounts import digest, reminders, services
from accounts.models import ApiKey, LogExport, Membership, User, Workspace, new_id
from accounts.services import Actor
from accounts.tests.shapes import logged
from accounts.usage import exports, quotas
from conftest import make_workspace
from detection.evaluation import budget
from detection.models import FalseAlarmBudget
from gateway_project.core import clock
from gateway_project.tests.waiting import Mail
from robin.models import AlarmNotice
from robin.queue import alarms
from webhooks.delivery import notices
from webhooks.models import Webhook, WebhookNotice

ACTOR = Actor("test")
MONDAY = datetime(2027, 3, 8, 7, 5, tzinfo=UTC)


class Picky(Mail):
    """A mail server that has something against some, or against everybody after the first mail."""

    against_alice: Exception | None = None
    against_bob: Exception | None = None
    after_one: Exception | None = None

    def send_messages(self, messages):
        for message in messages:
            trouble = getattr(self, f"against_{message.to[0].partition('@')[0]}", None)
            if trouble:
                raise trouble
            if self.after_one and mail.outbox:
                raise self.after_one
        return super().send_messages(messages)


FOR_GOOD = SMTPRecipientsRefused({"bob@acme.example": (550, b"no such user")})
FOR_NOW = SMTPRecipientsRefused({"bob@acme.example": (450, b"greylisted")})
AGAINST_BOB = [FOR_GOOD, FOR_NOW, SMTPDataError(554, b"spam"), UnicodeError("a header")]


def rotated(place):
    """A key of theirs whose grace ends, and that is called yet."""
    key = ApiKey.objects.get(workspace=place)
    services.rotate_key(key, grace_seconds=4 * 3600, actor=ACTOR)
    key.refresh_from_db()
    key.last_used_at = key.replaced_by.created_at + timedelta(minutes=30)
    key.save(update_fields=["last_used_at"])
    return key


def drifted(place, after=0):
    key = ApiKey.objects.get(workspace=place)
    FalseAlarmBudget.objects.create(
        workspace=place, subject_id=key.pk, api_key_id=key.pk, content_type="user_input",
        budget=0.02, threshold=0.6, baseline=[0] * 100,
        harmless=200, alarms=2, basis="uploaded", drift={"flagged": 0.3},
        checked_at=clock.now(), drifted_at=clock.now() + timedelta(minutes=after),
    )  # fmt: skip


def used_up(place):
    """Their day."""
    Workspace.objects.filter(pk=place.pk).update(rate_limit_per_day=1, is_confirmed=True)
    key = ApiKey.objects.filter(workspace=place).first()
    logged(
        {
            "request_id": new_id(), "api_key_id": key.pk, "workspace_id": place.pk,
            "endpoint": "/v1/detect", "http_status": 200, "request_size": 9,
            "response_time_ms": 2.0, "created_at": clock.now(),
        }
    )  # fmt: skip


class TestRefused:
    """One address that a mail server refuses keeps no other from its mail, nor makes it two."""

    @pytest.fixture
    def server(self, settings, monkeypatch):
        settings.EMAIL_BACKEND = f"{__name__}.Picky"
        return lambda name, error: monkeypatch.setattr(Picky, name, error)

    @pytest.fixture
    def places(self, make_key, acme, alice, bob, charlie):
        """Acme is alice's and bob's, Bobs is bob's, Globex charlie's: as rounds come to them."""
        User.objects.update(email_confirmed_at=clock.now())
        Membership.objects.update(role="owner")
        places = [make_workspace("bobs", bob), acme, make_workspace("globex", charlie)]
        for place in places:
            make_key(place, name=place.slug)
        return places

    def reminders(self, places):
        key = [rotated(place) for place in places][-1]
        for minutes in (55, 50):
            with time_machine.travel(key.grace_until - timedelta(minutes=minutes), tick=False):
                reminders.remind_of_graces()

    def digests(self, places):
        for minutes, place in enumerate(places):
            at = MONDAY - timedelta(days=7, minutes=-minutes)
            place.memberships.update(digest_at=at)
            key = ApiKey.objects.get(workspace=place)
            logged(
                {
                    "request_id": new_id(), "api_key_id": key.pk, "workspace_id": place.pk,
                    "endpoint": "/v1/detect", "http_status": 200, "request_size": 9,
                    "response_time_ms": 2.0, "created_at": MONDAY - timedelta(days=2),
                }
            )  # fmt: skip
        with time_machine.travel(MONDAY, tick=False):
            digest.send()
            digest.send()

    def budgets(self, places):
        for minutes, place in enumerate(places):
            drifted(place, minutes)
        budget.check()
        budget.check()

    def quotas(self, places):
        for place in places:
            used_up(place)
        quotas.tell()
        quotas.tell()

    ROUNDS = ["reminders", "digests", "budgets", "quotas"]

    @pytest.mark.parametrize("error", AGAINST_BOB, ids=["550", "450", "554", "unfit"])
    @pytest.mark.parametrize("rounds", ROUNDS)
    @pytest.mark.hostile
    def test_the_others_get_theirs_once(self, places, server, rounds, error):
        server("against_bob", error)
        getattr(self, rounds)(places)

        got = sorted(message.to[0] for message in mail.outbox)
        assert got == ["alice@acme.example", "charlie@globex.example"]

    @pytest.mark.parametrize("rounds", ROUNDS)
    def test_who_was_refused_for_now_gets_it_later(self, places, server, rounds, bob):
        server("against_bob", FOR_NOW)
        getattr(self, rounds)(places[:1])
        server("against_bob", None)
        with time_machine.travel(MONDAY + timedelta(minutes=5), tick=False):
            digest.send()
        key = ApiKey.objects.filter(replaced_by__isnull=False).first()
        if key:
            with time_machine.travel(key.grace_until - timedelta(minutes=5), tick=False):
                reminders.remind_of_graces()
        budget.check()
        quotas.tell()

        assert [message.to for message in mail.outbox] == [[bob.email]]

    @pytest.mark.hostile
    @pytest.mark.parametrize("error", AGAINST_BOB, ids=["550", "450", "554", "unfit"])
    def test_nor_do_many_files_of_theirs_hold_up_others(self, places, server, error):
        server("against_bob", error)
        for number, by in enumerate([*["bob@acme.example"] * 25, "charlie@globex.example"]):
            LogExport.objects.create(
                workspace=places[0], asked_by=by, conditions={}, link="https://x.example/",
                created_at=clock.now() + timedelta(seconds=number),
                finished_at=clock.now() + timedelta(seconds=number) if number < 25 else None,
            )  # fmt: skip
        for _ in range(2):
            exports.work()

        assert [message.to for message in mail.outbox] == [["charlie@globex.example"]]
        assert LogExport.objects.filter(told_at=None).exists() is (error is FOR_NOW)


AT_DATA = SMTPDataError(451, b"greylisted")
GONE = SMTPServerDisconnected("gone")


class TestSeveral:
    """A mail to three, of whom the server has something against the second."""

    @pytest.fixture
    def server(self, settings, monkeypatch):
        settings.EMAIL_BACKEND = f"{__name__}.Picky"
        return lambda name, error: monkeypatch.setattr(Picky, name, error)

    def alarm(self, acme):
        emails = ["alice@acme.example", "bob@acme.example", "charlie@globex.example"]
        alarms.change({"dead": (True, 1)}, emails, actor=ACTOR)
        alarms.judge({"dead": 5.0})
        return alarms.send_waiting

    def webhook(self, acme):
        webhook = Webhook.objects.create(workspace=acme, url="https://hooks.example/")
        WebhookNotice.objects.create(webhook=webhook, kind="enabled")
        return notices.send_waiting

    def reminder(self, acme):
        key = rotated(acme)

        def send():
            with time_machine.travel(key.grace_until - timedelta(minutes=50), tick=False):
                reminders.remind_of_graces()

        return send

    def budget(self, acme):
        drifted(acme)
        return budget.check

    def quota(self, acme):
        used_up(acme)
        return quotas.tell

    @pytest.fixture(params=["alarm", "webhook", "reminder", "budget", "quota"])
    def delivered(self, request, make_key, acme, alice, bob, charlie):
        """`delivered()`: a round, after the claims of the one before have ended."""
        User.objects.update(email_confirmed_at=clock.now())
        Membership.objects.create(workspace=acme, user=charlie, role="owner")
        acme.memberships.update(role="owner")
        make_key(acme)
        send = getattr(self, request.param)(acme)

        def delivered():
            send()
            for model in (AlarmNotice, WebhookNotice):
                model.objects.update(claimed_at=None)
            return sorted(message.to[0].partition("@")[0] for message in mail.outbox)

        return delivered

    @pytest.mark.parametrize(
        "error", [*AGAINST_BOB, AT_DATA], ids=["550", "450", "554", "unfit", "451"]
    )
    @pytest.mark.hostile
    def test_the_others_get_theirs_in_the_first_round_and_once(self, delivered, server, error):
        server("against_bob", error)

        assert [delivered() for _ in range(10)] == [["alice", "charlie"]] * 10

        server("against_bob", None)
        is_for_now = error in (FOR_NOW, AT_DATA)
        assert delivered() == ["alice", *["bob"] * is_for_now, "charlie"]

    @pytest.mark.hostile
    def test_a_server_that_goes_away_between_two_writes_to_nobody_twice(self, delivered, server):
        server("after_one", GONE)
        assert [delivered() for _ in range(3)] == [["alice"]] * 3

        server("after_one", None)
        assert [delivered(), delivered()] == [["alice", "bob", "charlie"]] * 2

    @pytest.mark.parametrize("delivered", ["webhook"], indirect=True)
    def test_sent_again_a_parked_notice_goes_to_whom_it_was_refused_for(self, delivered, server):
        """And to nobody who got it late."""
        server("against_alice", FOR_GOOD)
        server("against_bob", FOR_NOW)
        assert delivered() == ["charlie"]
        server("against_bob", None)
        assert delivered() == ["bob", "charlie"]

        server("against_alice", None)
        notices.send_again(WebhookNotice.objects.get().pk)
        assert [delivered(), delivered()] == [["alice", "bob", "charlie"]] * 2


def test_an_alarm_without_anybody_to_tell_asks_no_server_and_says_of_no_mail(gateway, monkeypatch):
    monkeypatch.setattr(Mail, "open", lambda self: pytest.fail("it is dialled"))
    alarms.change({"dead": (True, 1)}, [], actor=ACTOR)
    alarms.judge({"dead": 5.0})
    assert alarms.send_waiting() == 0

    [notice] = AlarmNotice.objects.all()
    assert (notice.sent_at, notice.waits) == (None, False)
