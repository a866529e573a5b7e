"""Mails of our own accord: the week, the end of a grace; who gets them, and who does not."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from unittest.mock import Mock

import pytest
import time_machine
from django.core import mail

from accounts import digest, mailing, reminders, services
from accounts.models import ApiKey, Membership, User, new_id
from accounts.services import Actor
from accounts.tests.shapes import logged
from gateway_project.core import clock

ACTOR = Actor("test")
AWAY = ("django.core.mail.backends.locmem.EmailBackend.open", Mock(side_effect=ConnectionError))
MONDAY = datetime(2027, 3, 8, 7, 5, tzinfo=UTC)


@pytest.fixture
def owners(acme, alice):
    """Alice alone, with an address of her own."""
    services.confirm_email(alice, actor=ACTOR)
    Membership.objects.update(digest_at=MONDAY - timedelta(days=7))
    return alice


@pytest.fixture
def called(acme, acme_key):
    def called(at, **values):
        logged(
            {
                "request_id": new_id(), "api_key_id": acme_key.row.pk, "workspace_id": acme.pk,
                "endpoint": "/v1/detect", "http_status": 200, "request_size": 9,
                "response_time_ms": 2.0, "is_malicious": False, "decision": "allow",
                "confidence": 0.1, "created_at": at, **values,
            }
        )  # fmt: skip

    return called


class TestWeek:
    def test_on_monday_once_with_what_it_did(self, owners, acme, called):
        for day in range(1, 4):
            called(MONDAY - timedelta(days=day))
        called(MONDAY - timedelta(days=2), is_malicious=True, decision="flag")
        called(MONDAY - timedelta(days=9), http_status=422)
        with time_machine.travel(MONDAY, tick=False):
            sent = [digest.send(), digest.send()]
        [message] = mail.outbox

        assert sent == [1, 0]
        assert message.to == [owners.email]
        assert message.subject == f"Your week with {acme.name}"
        assert re.search(r"Requests +4 \(\+300 % on the week before\)", message.body)
        assert "25.0% of them" in message.body

    @pytest.mark.parametrize("later", [timedelta(hours=-1), timedelta(days=2)])
    def test_at_no_other_time(self, owners, called, later):
        called(MONDAY - timedelta(days=2))
        with time_machine.travel(MONDAY + later, tick=False):
            assert digest.send() == 0

    def test_a_week_without_a_request_writes_to_nobody(self, owners, called):
        called(MONDAY - timedelta(days=20))
        with time_machine.travel(MONDAY, tick=False):
            assert digest.send() == 0

    def test_who_does_not_want_it_gets_none(self, owners, called):
        called(MONDAY - timedelta(days=2))
        mailing.turn_off(owners, "digest")
        with time_machine.travel(MONDAY, tick=False):
            assert digest.send() == 0

    def test_who_joined_since_gets_the_next_one(self, owners, acme, called):
        called(MONDAY - timedelta(days=2))
        Membership.objects.filter(user=owners).update(digest_at=MONDAY)
        with time_machine.travel(MONDAY, tick=False):
            assert digest.send() == 0

    def test_a_mail_server_that_is_away_costs_nobody_theirs(self, owners, called, monkeypatch):
        called(MONDAY - timedelta(days=2))

        with time_machine.travel(MONDAY, tick=False), monkeypatch.context() as patched:
            patched.setattr(*AWAY)
            assert digest.send() == 0
        with time_machine.travel(MONDAY, tick=False):
            assert digest.send() == 1

    def test_it_names_what_needs_a_look(self, owners, acme, acme_key, called):
        called(MONDAY - timedelta(days=2))
        with time_machine.travel(MONDAY, tick=False):
            ApiKey.objects.filter(pk=acme_key.row.pk).update(expires_at=MONDAY + timedelta(days=3))
            digest.send()

        assert "expires on 11 Mar" in mail.outbox[0].body


class TestReminder:
    @pytest.fixture
    def rotated(self, acme_key, owners):
        """An hour ago, for four; and called since."""
        services.rotate_key(acme_key.row, grace_seconds=4 * 3600, actor=ACTOR)
        key = ApiKey.objects.get(pk=acme_key.row.pk)
        used = key.replaced_by.created_at + timedelta(minutes=30)
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=used, last_used_ip="203.0.113.7")
        return key

    def at(self, key, before):
        return time_machine.travel(key.grace_until - before, tick=False)

    def test_in_the_last_quarter_once(self, rotated):
        with self.at(rotated, timedelta(minutes=90)):
            early = reminders.remind_of_graces()
        with self.at(rotated, timedelta(minutes=50)):
            sent = [reminders.remind_of_graces(), reminders.remind_of_graces()]
        [message] = mail.outbox

        assert (early, sent) == (0, [1, 0])
        assert "is still called, and ends soon" in message.subject
        assert rotated.last4 in message.body
        assert "203.0.113.7" in message.body

    def test_an_extended_grace_sends_a_second_reminder(self, rotated):
        with self.at(rotated, timedelta(minutes=50)):
            reminders.remind_of_graces()
            services.extend_grace(rotated, 86_400, actor=ACTOR)
        rotated.refresh_from_db()
        with self.at(rotated, timedelta(minutes=50)):
            assert reminders.remind_of_graces() == 1

    def test_a_key_that_nothing_calls_sends_no_reminder(self, rotated):
        ApiKey.objects.filter(pk=rotated.pk).update(last_used_at=None)
        with self.at(rotated, timedelta(minutes=5)):
            assert reminders.remind_of_graces() == 0

    def test_nor_of_one_that_is_revoked(self, rotated):
        services.revoke_key(rotated, actor=ACTOR)
        with self.at(rotated, timedelta(minutes=5)):
            assert reminders.remind_of_graces() == 0

    def test_who_looks_after_the_key_gets_it_too(self, rotated, bob):
        ApiKey.objects.filter(pk=rotated.pk).update(owner=bob.email.upper())
        with self.at(rotated, timedelta(minutes=5)):
            assert reminders.remind_of_graces() == 2

    def test_an_owner_who_is_no_member_gets_none(self, rotated, charlie):
        ApiKey.objects.filter(pk=rotated.pk).update(owner=charlie.email)
        with self.at(rotated, timedelta(minutes=5)):
            assert reminders.remind_of_graces() == 1

    def test_a_mail_server_that_is_away_is_tried_again(self, rotated, monkeypatch):
        with self.at(rotated, timedelta(minutes=5)), monkeypatch.context() as patched:
            patched.setattr(*AWAY)
            assert reminders.remind_of_graces() == 0
        with self.at(rotated, timedelta(minutes=4)):
            assert reminders.remind_of_graces() == 1

    def test_a_worker_that_saw_it_before_another_writes_to_nobody_twice(self, rotated, monkeypatch):
        with self.at(rotated, timedelta(minutes=5)), monkeypatch.context() as patched:
            seen = list(reminders.ending(clock.now()))
            reminders.remind_of_graces()
            ApiKey.objects.filter(pk=rotated.pk).update(grace_untold=["bob@acme.example"])
            patched.setattr(reminders, "ending", lambda now: seen)
            assert (len(seen), reminders.remind_of_graces()) == (1, 0)


class TestExpiry:
    @pytest.fixture
    def expiring(self, acme_key, owners):
        """Made a month ago, and used since; it has five days left."""
        now = clock.now()
        ApiKey.objects.filter(pk=acme_key.row.pk).update(
            created_at=now - timedelta(days=30),
            expires_at=now + timedelta(days=5),
            last_used_at=now - timedelta(hours=1),
        )
        return ApiKey.objects.get(pk=acme_key.row.pk)

    def test_within_its_last_week_once(self, expiring):
        with time_machine.travel(clock.now() - timedelta(days=3), tick=False):
            early = reminders.remind_of_expiries()
        sent = [reminders.remind_of_expiries(), reminders.remind_of_expiries()]
        [message] = mail.outbox

        assert (early, sent) == (0, [1, 0])
        assert "expires soon" in message.subject
        assert expiring.last4 in message.body

    def test_another_expiry_is_announced_again(self, expiring):
        reminders.remind_of_expiries()
        ApiKey.objects.update(expires_at=expiring.expires_at + timedelta(days=1))

        assert reminders.remind_of_expiries() == 1

    def test_a_rotated_key_sends_the_reminder_of_its_grace_instead(self, expiring):
        reminders.remind_of_expiries()
        services.rotate_key(expiring, grace_seconds=4 * 3600, actor=ACTOR)
        key = ApiKey.objects.get(pk=expiring.pk)
        used = key.replaced_by.created_at + timedelta(minutes=30)
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=used)
        with time_machine.travel(key.grace_until - timedelta(minutes=50), tick=False):
            assert (reminders.remind_of_expiries(), reminders.remind_of_graces()) == (0, 1)

    @pytest.mark.parametrize(
        "values",
        [{"last_used_at": None}, {"revoked_at": MONDAY}, {"created_at": MONDAY}],
        ids=["unused", "revoked", "made for a week"],
    )
    def test_a_key_that_may_end_sends_no_reminder(self, expiring, values):
        ApiKey.objects.update(**values)

        assert reminders.remind_of_expiries() == 0


class TestPreferences:
    def test_each_mail_says_how_to_get_no_more(self, alice, settings):
        settings.PUBLIC_URL = "https://gateway.example"
        mailing.to_people([alice], "digest", lambda: ("Hello", "A text."))
        [message] = mail.outbox
        link = mailing.off_link(alice, "digest")

        assert message.extra_headers["List-Unsubscribe"] == f"<{link}>"
        assert message.extra_headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert link in message.body

    def test_without_an_address_of_ours_no_link_is_made_up(self, alice, settings):
        settings.PUBLIC_URL = ""
        mailing.to_people([alice], "digest", lambda: ("Hello", "A text."))

        assert "http" not in mail.outbox[0].body

    def test_a_link_is_for_one_person_and_one_kind(self, alice, settings):
        settings.PUBLIC_URL = "https://gateway.example"
        token = mailing.off_link(alice, "keys").rpartition("/")[2]
        found = mailing.of_token(token)

        assert found is not None
        assert (found[0].pk, found[1]) == (alice.pk, "keys")
        assert mailing.of_token(token[:-2] + "xx") is None
        assert mailing.of_token("nonsense") is None

    def test_a_kind_that_is_off_leaves_the_others(self, alice):
        mailing.turn_off(alice, "keys")
        found = User.objects.get(pk=alice.pk)

        assert not mailing.wants(found, "keys")
        assert all(mailing.wants(found, kind) for kind in mailing.KINDS if kind != "keys")

    def test_viewers_are_not_written_to(self, acme, alice, bob):
        Membership.objects.filter(user=bob).update(role="viewer")

        assert [user.pk for user in mailing.people_of(acme, "keys")] == [alice.pk]
