"""Mails: two forms that say the same, and nothing that a name could break out of."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import time_machine
from django.core import mail
from django.test import Client

from accounts import digest, reminders, services
from accounts.models import ApiKey, Invitation, Membership, new_id
from accounts.tests.shapes import logged
from accounts.usage import quotas
from detection.evaluation import budget
from detection.models import FalseAlarmBudget
from gateway_project.core import mails
from webhooks.delivery import notices
from webhooks.models import Webhook, WebhookNotice

ROOT = Path(__file__).resolve().parents[2]
MONDAY = datetime(2027, 3, 8, 7, 5, tzinfo=UTC)
PASSWORD = "a good long password"
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"
CHROME = "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/130.0 Safari/537.36"
TEXT = """Somebody signed in.
Follow the link to look.

https://gateway.example/accounts/x/?a=1&b=2

  When     2026-05-01 12:00 UTC
  From     203.0.113.7

If it was not you, see https://gateway.example/help now.

--\x20
gateway.example"""


OURS = "https://gateway.example/"
CLIENTS = "http://testserver/"
"""Of Django's client, whose requests are not ours."""


def html_of(message):
    [(content, kind)] = [(a.content, a.mimetype) for a in message.alternatives]
    assert kind == "text/html"
    return content


def test_a_text_becomes_a_page_with_a_button_and_facts():
    page = html_of(mails.message("A  new\nbrowser", TEXT, ["x@x.example"], ours=OURS))

    assert 'href="https://gateway.example/accounts/x/?a=1&amp;b=2"' in page
    assert page.count("Open the link") == 1
    assert re.search(r"<td[^>]*>When</td><td[^>]*>2026-05-01 12:00 UTC</td>", page)
    assert 'href="https://gateway.example/help"' in page
    assert "<h1" in page
    assert page.endswith("gateway.example</p></div></body></html>")


def test_it_asks_no_host_for_anything():
    page = mails.html_of("x", TEXT, OURS)

    assert not re.findall(r"\bsrc=|<link|<script|@import|url\(", page)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x>', "a\r\nBcc: x@x.example"]
)
def test_a_name_is_only_a_name(name):
    message = mails.message(f"{name} invites you", f"{name} invites you.", ["x@x.example"])
    page = html_of(message)

    assert "<script" not in page
    assert "<img" not in page
    assert "\n" not in message.subject
    assert message.message()["Bcc"] is None


@pytest.mark.hostile
@pytest.mark.parametrize("ours", ["", OURS])
def test_only_our_own_addresses_are_links(ours):
    text = "See https://gateway.example.evil.example/ or\n\nhttps://evil.example/\n\nnow."

    assert "href" not in mails.html_of("x", text, ours)


HOSTILE = {
    "link": "https://evil.example/login",
    "button": "x\n\nhttps://evil.example/login\n\ny",
    "bare": "www.evil.example/login",
    "mail": "help@evil.example",
    "number": "192.0.2.7/login",
    "dot": "evil\u3002example/login",
    "halves": "hthttp://tp:////evil.example",
    "facts": "x\n    From  a bank\n    When  now",
    "foot": "x\n-- \ny",
    "lines": "x\r\ny\x0b\u2028z",
    "html": "</p><script>alert(1)</script>",
}
ADDRESS = re.compile(r"evil[.\u3002]example(?!/hook)|192\.0")
"""Whole, of a name; a webhook's own address is named to its owners."""
WITHOUT_NAMES = {
    "accounts/mailing.py",  # passes on what others write
    "accounts/usage/exports.py",
    "gateway_project/staff/plans.py",  # staff to staff
    "portal/mailings.py",  # staff to all
    "robin/queue/alarms.py",
}
"""No customer's word stands in the mails of these."""


class Mails:
    """Each mail that a customer's word stands in, by where it is written."""

    def __init__(self, owner, acme, key):
        self.owner, self.acme, self.key = owner, acme, key
        self.webhook = Webhook(workspace=acme, url="https://evil.example/hook")

    def name(self, name):
        for one in (self.acme, self.key):
            one.name = name
            one.save(update_fields=["name"])

    def invitation(self):
        Invitation.objects.all().delete()
        self.owner.post("/app/people", {"email": "eva@initech.example", "role": "member"})
        return mail.outbox[-1]

    def digest(self):
        with time_machine.travel(MONDAY, tick=False):
            Membership.objects.update(digest_at=MONDAY - timedelta(days=7))
            assert digest.send() == 1
        return mail.outbox[-1]

    def reminder(self):
        ApiKey.objects.filter(pk=self.key.pk).update(grace_told_for=None)
        with time_machine.travel(self.key.grace_until - timedelta(hours=1), tick=False):
            assert reminders.remind_of_graces() == 1
        return mail.outbox[-1]

    def expiry(self):
        self.key.expires_at = self.key.last_used_at = MONDAY
        self.key.workspace = self.acme
        return mails.message(*reminders._written_of_expiry(self.key), ["x@x.example"])

    def quota(self, percent):
        return mails.message(*quotas._written(self.acme, percent), ["x@x.example"])

    def notice(self, kind):
        facts = {"last": "HTTP 500", "failing_since": "2027-03-01T00:00:00Z", "reason": "failing"}
        notice = WebhookNotice(webhook=self.webhook, kind=kind, facts=facts)
        return mails.message(*notices.text_of(notice), ["x@x.example"])

    def budget(self):
        held = FalseAlarmBudget(workspace=self.acme, threshold=0.5, budget=0.01)
        written = budget._written(held, self.key.name)
        return mails.message(*written, ["x@x.example"])


WRITTEN = {
    "accounts/adapter.py": [Mails.invitation],
    "accounts/digest.py": [Mails.digest],
    "accounts/reminders.py": [Mails.reminder, Mails.expiry],
    "accounts/usage/quotas.py": [partial(Mails.quota, percent=percent) for percent in (80, 100)],
    "detection/evaluation/budget.py": [Mails.budget],
    "webhooks/delivery/notices.py": [partial(Mails.notice, kind=kind) for kind in notices.Kind],
}


@pytest.fixture
def written(gateway, enter, alice, acme, acme_key, settings):
    """With a key whose grace ends, and a week's call."""
    settings.PUBLIC_URL = OURS.rstrip("/")
    services.confirm_email(alice, actor=services.Actor("test"))
    with time_machine.travel(MONDAY, tick=False):
        services.rotate_key(acme_key.row, grace_seconds=86_400, actor=services.Actor("test"))
        key = ApiKey.objects.get(pk=acme_key.row.pk)
        used = key.replaced_by.created_at + timedelta(minutes=30)
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=used)
        logged(
            {
                "request_id": new_id(), "api_key_id": key.pk, "workspace_id": acme.pk,
                "endpoint": "/v1/detect", "http_status": 200, "request_size": 9,
                "response_time_ms": 2.0, "is_malicious": False, "decision": "allow",
                "confidence": 0.1, "created_at": MONDAY - timedelta(days=2),
            }
        )  # fmt: skip
    return Mails(enter(alice), acme, key)


def shape_of(message):
    """What leads somewhere and what divides, without what differs from one mail to the next."""
    unsigned = re.sub(
        rf"((?:{OURS}|{CLIENTS})\w+/\w+)[^\s\"<]*", r"\1", f"{html_of(message)}\0{message.body}"
    )
    page, _, text = unsigned.partition("\0")
    return re.findall(r"<[^>]*>", page), re.findall(r"\S+://\S+|\s*\n\s*", text)


@pytest.mark.hostile
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("path", WRITTEN)
def test_a_name_moves_nothing_in_any_mail(written, path, name):
    """Nor in one of a row from before names had to be one line."""
    for write in WRITTEN[path]:
        written.name("Acme")
        usual = write(written)
        written.name(name)
        hostile = write(written)

        assert "Acme" in usual.body
        assert "Acme" not in hostile.body
        assert shape_of(hostile) == shape_of(usual)
        assert "://" not in hostile.subject
        for form in (hostile.subject, hostile.body, html_of(hostile)):
            assert not ADDRESS.search(form)
        hrefs = re.findall(r'href="([^"]*)', html_of(hostile))
        assert all(href.startswith((OURS, CLIENTS)) for href in hrefs)


def test_every_mail_is_tried_with_such_names():
    """One that is written elsewhere belongs in `WRITTEN`, or says that it holds no such word."""
    writes = re.compile(
        r"\b(mails\.message|message_to|to_workspace|to_people|AccountAdapter\(request\)\.send_mail)\("
    )
    found = {
        str(path.relative_to(ROOT))
        for app in ("accounts", "detection", "webhooks", "robin", "portal", "gateway_project")
        for path in (ROOT / app).rglob("*.py")
        if "/tests/" not in str(path) and writes.search(path.read_text())
    }

    assert found == WRITTEN.keys() | WITHOUT_NAMES


def test_every_mail_of_ours_is_made_there():
    """One that is made elsewhere is plain."""
    made = [
        str(path.relative_to(ROOT))
        for app in ("accounts", "detection", "webhooks", "robin", "portal", "gateway_project")
        for path in (ROOT / app).rglob("*.py")
        if "/tests/" not in str(path)
        and re.search(r"\b(EmailMessage|send_mail|EmailMultiAlternatives)\(", path.read_text())
    ]

    # The doctor's tells an operator that mail leaves at all.
    probe = "gateway_project/doctor/network.py"
    assert set(made) <= {"accounts/adapter.py", "gateway_project/core/mails.py", probe}


@pytest.mark.parametrize("path", ["signup", "password/reset"])
def test_mails_of_accounts_have_both_forms(gateway, alice, path):
    mail.outbox.clear()
    Client().post(f"/accounts/{path}/", {"email": "eva@x.example", "password1": PASSWORD})
    Client().post(f"/accounts/{path}/", {"email": alice.email, "password1": PASSWORD})

    assert len(mail.outbox) == 2
    for message in mail.outbox:
        links = re.findall(r"https?://\S+", message.body)
        assert links
        assert all(link.replace("&", "&amp;") in html_of(message) for link in links)


class TestDevices:
    def sign_in(self, user, agent):
        mail.outbox.clear()
        browser = Client(headers={"user-agent": agent})
        done = browser.post("/accounts/login/", {"login": user.email, "password": PASSWORD})
        assert done.status_code == 302
        return [message.subject for message in mail.outbox]

    def test_a_new_browser_is_mailed_about(self, gateway, alice):
        services.confirm_email(alice, actor=services.Actor("test"))

        assert self.sign_in(alice, FIREFOX) == []  # the first of all
        assert self.sign_in(alice, FIREFOX) == []
        assert self.sign_in(alice, CHROME) == ["A new browser signed in to your account"]
        assert "Chrome on Windows" in mail.outbox[0].body
        assert self.sign_in(alice, CHROME) == []


@pytest.mark.needs_redis
@pytest.mark.hostile
def test_a_round_whose_mail_server_hangs_keeps_one_place_and_no_other_round_waits(monkeypatch):
    monkeypatch.setattr(mails, "WAIT_SECONDS", 0.05)
    has_begun, answers = Event(), Event()

    def hangs():
        has_begun.set()
        return int(answers.wait(10))

    with ThreadPoolExecutor(1) as other:
        first = other.submit(mails.in_turn(hangs))
        has_begun.wait(10)
        meanwhile = mails.in_turn(lambda: 1)()
        answers.set()

        assert (meanwhile, first.result()) == (0, 1)
    assert mails.in_turn(lambda: 1)() == 1


@pytest.mark.hostile
def test_a_slow_mail_server_is_left_after_a_while_and_the_rest_have_theirs_later(monkeypatch):
    monkeypatch.setattr(mails, "SEND_SECONDS", 0)

    found = mails.send_each(["a@x.example", "b@x.example"], lambda to: mail.EmailMessage(to=[to]))

    assert (found.count, found.later, found.is_away) == (1, ["b@x.example"], True)
