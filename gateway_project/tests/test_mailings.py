"""Announcements by mail: to whom, once each however often a worker is killed, told to staff."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from datetime import timedelta
from smtplib import SMTPDataError, SMTPRecipientsRefused, SMTPServerDisconnected

import pytest
import time_machine
from django.core.mail.backends.base import BaseEmailBackend
from django.utils import timezone

from accounts import mailing
from accounts.models import AuditEvent, Membership, User, Workspace
from accounts.services import Actor
from gateway_project import tasks
from gateway_project.core import errors
from portal import mailings
from portal.models import Announcement, Mailing

ACTOR = Actor("ann@gateway.example")
PEOPLE = 7


class Killed(BaseException):
    """As `kill -9`: no `except Exception` of ours sees it."""


class Server(BaseEmailBackend):
    """A mail server of which the tests say what it does with the next mail."""

    got: Counter[str] = Counter()
    mails: list = []
    does: dict[str, list] = {}

    def open(self):
        if error := self.does.get("open"):
            raise error.pop(0) if len(error) > 1 else error[0]
        return True

    def send_messages(self, messages):
        for message in messages:
            [to] = message.to
            for error in [self.does.get(to, []), self.does.get("next", [])]:
                if error:
                    raise error.pop(0)
            self.got[to] += 1
            self.mails.append(message)
            if after := self.does.get("after"):
                raise after.pop()
        return len(messages)


@pytest.fixture
def server(gateway, settings):
    settings.EMAIL_BACKEND = f"{__name__}.Server"
    Server.got, Server.mails, Server.does = Counter(), [], {}
    return Server


@pytest.fixture
def people(gateway):
    now = timezone.now()
    return [
        User.objects.create_user(f"p{n}@mail.example", "!", email_confirmed_at=now)
        for n in range(PEOPLE)
    ]


@pytest.fixture
def announcement(gateway):
    later = timezone.now() + timedelta(days=1)
    return Announcement.objects.create(text="Down on <b>Sunday</b>.", ends_at=later)


def begin(announcement, *, is_important=False):
    mailings.begin(announcement, actor=ACTOR, subject="Planned work", is_important=is_important)


def row():
    return Mailing.objects.get()


def addresses(people):
    return {user.email for user in people}


class TestToWhom:
    def test_each_confirmed_address_once(self, server, people, announcement):
        User.objects.create_user("unconfirmed@mail.example", "!")
        User.objects.filter(pk=people[0].pk).update(is_active=False)
        begin(announcement)

        assert tasks.send_announcements() == PEOPLE - 1
        assert tasks.send_announcements() == 0

        assert server.got == Counter(addresses(people[1:]))
        assert (row().sent, row().total) == (PEOPLE - 1, PEOPLE - 1)
        assert row().finished_at is not None

    def test_who_wants_no_news_gets_it_only_when_it_is_important(
        self, server, people, announcement
    ):
        mailing.turn_off(people[0], "news")
        mailing.turn_off(people[-1], "news")
        begin(announcement)
        tasks.send_announcements()

        assert server.got == Counter(addresses(people[1:-1]))
        assert (row().sent, row().skipped) == (PEOPLE - 2, 2)

        other = Announcement.objects.create(text="A leak.", ends_at=announcement.ends_at)
        begin(other, is_important=True)
        tasks.send_announcements()

        assert server.got[people[0].email] == 1
        assert "whatever their settings say" in server.mails[-1].body
        assert "List-Unsubscribe" not in server.mails[-1].extra_headers

    def test_nobody_at_all_is_a_slice_that_is_passed(self, server, people, announcement):
        User.objects.update(mails_off=["news"])
        begin(announcement)
        tasks.send_announcements()

        assert not server.got
        assert (row().skipped, row().finished_at is not None) == (PEOPLE, True)

    def test_of_one_plan(self, server, people, announcement):
        for user, plan in ((people[0], "team"), (people[1], "free")):
            workspace = Workspace.objects.create(slug=plan, name=plan, plan_id=plan)
            Membership.objects.create(workspace=workspace, user=user, role="viewer")
        Announcement.objects.update(plan_id="team")
        announcement.refresh_from_db()
        begin(announcement)
        tasks.send_announcements()

        assert server.got == Counter([people[0].email])

    def test_who_joins_meanwhile_gets_none(self, server, people, announcement):
        begin(announcement)
        User.objects.create_user("new@mail.example", "!", email_confirmed_at=timezone.now())
        tasks.send_announcements()

        assert "new@mail.example" not in server.got

    def test_the_mail(self, server, people, announcement, settings):
        settings.PUBLIC_URL = "https://gateway.example"
        begin(announcement)
        tasks.send_announcements()
        mail = server.mails[0]

        assert mail.subject == "Planned work"
        assert "Down on <b>Sunday</b>." in mail.body
        assert "&lt;b&gt;Sunday" in mail.alternatives[0].content
        assert "https://gateway.example/app/" in mail.body
        assert mail.extra_headers["List-Unsubscribe"].startswith("<https://gateway.example/")
        assert mailing.KINDS["news"]
        ids = {one.extra_headers["Message-ID"] for one in server.mails}
        assert len(ids) == PEOPLE

    def test_slices_end_and_go_on(self, server, people, announcement, monkeypatch):
        monkeypatch.setattr(mailings, "SLICE", 2)
        mailing.turn_off(people[2], "news")
        mailing.turn_off(people[3], "news")
        begin(announcement)
        tasks.send_announcements()

        assert server.got == Counter(addresses(people) - addresses(people[2:4]))
        assert row().done == row().total == PEOPLE


STEPS = ("before", "after", "settled")


@pytest.mark.hostile
class TestKilled:
    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("slice_of", [1, 3, 100])
    def test_at_each_mail_nobody_gets_two_and_unknown_outcomes_are_reported(
        self, server, people, announcement, monkeypatch, step, slice_of
    ):
        """The worker dies with each mail once: before it left, after it, and when that is kept."""
        monkeypatch.setattr(mailings, "SLICE", slice_of)
        begin(announcement)
        at = timezone.now()
        settle = mailings._settle
        for _ in range(PEOPLE + 2):
            if step == "settled":
                monkeypatch.setattr(mailings, "_settle", self._dies)
            else:
                server.does = {"next" if step == "before" else "after": [Killed()]}
            with time_machine.travel(at, tick=True), suppress(Killed):
                tasks.send_announcements()
            monkeypatch.setattr(mailings, "_settle", settle)
            at += mailings.LEASE + timedelta(seconds=1)
        server.does = {}
        with time_machine.travel(at, tick=True):
            tasks.send_announcements()

        assert max(server.got.values(), default=0) <= 1
        assert row().finished_at is not None
        assert row().sent + len(row().unknown) == PEOPLE
        lost = addresses(people) - set(server.got)
        unknown = addresses(User.objects.filter(pk__in=row().unknown))
        assert lost <= unknown

        assert mailings.send_again(announcement, actor=ACTOR)
        with time_machine.travel(at, tick=True):
            tasks.send_announcements()
        assert set(server.got) == addresses(people)
        assert (row().unknown, row().again) == ([], [])

    def _dies(self, *args):
        raise Killed

    def test_another_worker_leaves_a_fresh_one_alone(self, server, people, announcement):
        begin(announcement)
        server.does = {"next": [Killed()]}
        with pytest.raises(Killed):
            tasks.send_announcements()

        assert tasks.send_announcements() == 0  # it may still be at it
        with time_machine.travel(timezone.now() + mailings.LEASE, tick=True):
            assert tasks.send_announcements() == PEOPLE - 1
        assert len(row().unknown) == 1

    def test_two_at_once_send_each_once(self, server, people, announcement, monkeypatch):
        """The second goes on in the middle of the first one's slice."""
        begin(announcement)
        claim, depth = mailings._claim, []

        def interleaved(seen, user):
            mail = claim(seen, user)
            if not depth:
                depth.append(1)
                tasks.send_announcements()
                depth.clear()
            return mail

        monkeypatch.setattr(mailings, "_claim", interleaved)
        tasks.send_announcements()
        monkeypatch.undo()
        tasks.send_announcements()

        assert server.got == Counter(addresses(people))


class TestTheServer:
    def test_away_costs_nobody_a_mail(self, server, people, announcement):
        begin(announcement)
        server.does = {"open": [ConnectionRefusedError()]}
        assert tasks.send_announcements() == 0
        server.does = {}
        tasks.send_announcements()

        assert server.got == Counter(addresses(people))
        assert row().unknown == []

    def test_gone_in_the_middle_leaves_one_unknown(self, server, people, announcement):
        begin(announcement)
        server.does = {people[2].email: [SMTPServerDisconnected("gone")]}
        assert tasks.send_announcements() == 2
        tasks.send_announcements()

        assert row().unknown == [str(people[2].pk)]
        assert server.got == Counter(addresses(people) - {people[2].email})

    def test_who_is_refused_is_counted_and_the_others_go_on(self, server, people, announcement):
        begin(announcement)
        refused = SMTPRecipientsRefused({people[1].email: (550, b"no such user")})
        server.does = {people[1].email: [refused]}
        tasks.send_announcements()

        assert (row().refused, row().sent) == (1, PEOPLE - 1)

    def test_who_is_refused_for_now_is_tried_again_at_the_end(self, server, people, announcement):
        begin(announcement)
        later = SMTPRecipientsRefused({people[1].email: (450, b"greylisted")})
        server.does = {people[1].email: [later, later]}
        tasks.send_announcements()
        assert server.mails[-1].to == [people[-1].email]
        tasks.send_announcements()

        assert server.got == Counter(addresses(people))
        assert row().finished_at is not None

    def test_too_many_at_once_waits(self, server, people, announcement):
        begin(announcement)
        server.does = {"next": [SMTPDataError(452, b"too many mails")]}
        assert tasks.send_announcements() == 0
        tasks.send_announcements()
        tasks.send_announcements()

        assert server.got == Counter(addresses(people))

    def test_for_a_day_and_no_longer(self, server, people, announcement):
        begin(announcement)
        Mailing.objects.update(begun_at=timezone.now() - timedelta(days=2))
        server.does = {
            user.email: [SMTPRecipientsRefused({user.email: (450, b"")})] for user in people
        }
        tasks.send_announcements()

        assert (row().refused, row().again) == (PEOPLE, [])

    def test_so_much_that_nobody_knows_stops_it(self, server, people, announcement, monkeypatch):
        monkeypatch.setattr(mailings, "LISTED_MAX", 2)
        begin(announcement)
        server.does = {"next": [SMTPServerDisconnected() for _ in range(PEOPLE)]}
        for _ in range(4):
            tasks.send_announcements()

        assert (row().is_stopped, len(row().unknown)) == (True, 2)


class TestStaff:
    def path(self, announcement):
        return f"/admin/portal/announcement/{announcement.pk}/change/"

    def act(self, root, announcement, name, **fields):
        return root.post(
            "/admin/portal/announcement/",
            action=name,
            _selected_action=[str(announcement.pk)],
            is_sure="yes",
            **fields,
        )

    def test_they_choose_it_see_how_far_it_is_and_the_trail_says_so(
        self, root, server, people, announcement
    ):
        begun = self.act(root, announcement, "send_by_mail", subject="Planned work")
        before = root.get(self.path(announcement)).text
        tasks.send_announcements()
        after = root.get("/admin/portal/announcement/").text

        assert begun.status_code == 302
        assert "about to begin" in before
        assert "Stop the mails" in before
        assert f"{PEOPLE} of {PEOPLE} sent" in after
        [started] = AuditEvent.objects.filter(action="announcement.mailing_begun")
        [ended] = AuditEvent.objects.filter(action="announcement.mailed")
        assert started.actor == "root@gateway.example"
        assert ended.details["sent"] == PEOPLE

    def test_a_half_of_it_shows_as_progress(self, root, server, people, announcement):
        begin(announcement)
        server.does = {people[3].email: [SMTPServerDisconnected()]}
        tasks.send_announcements()

        text = root.get(self.path(announcement)).text

        assert f'<progress max="{PEOPLE}" value="4"' in text
        assert "1: nobody knows" in text
        assert "Send to those of whom nobody knows" in text

    def test_stopped_no_more_leaves(self, root, server, people, announcement):
        begin(announcement)
        server.does = {people[3].email: [SMTPServerDisconnected()]}
        tasks.send_announcements()
        self.act(root, announcement, "stop_mailing")
        tasks.send_announcements()

        assert server.got.total() == 3
        assert "; stopped" in root.get(self.path(announcement)).text
        assert AuditEvent.objects.get(action="announcement.mailing_stopped").actor == (
            "root@gateway.example"
        )

    def test_twice_is_refused(self, announcement):
        begin(announcement)

        with pytest.raises(errors.Conflict, match="given to the mail already"):
            begin(announcement)

    def test_others_of_staff_send_nothing(self, gateway, announcement):
        from gateway_project.tests.test_staff_admin import viewer_of

        viewer = viewer_of(gateway, Announcement)
        page = viewer.get(self.path(announcement))
        self.act(viewer, announcement, "send_by_mail", subject="x")

        assert page.status_code == 200
        assert "Send by mail" not in page.text
        assert not Mailing.objects.exists()


def test_people_turn_news_off_in_their_settings(gateway, alice):
    mailing.turn_off(alice, "news")
    alice.refresh_from_db()

    assert not mailing.wants(alice, "news")
