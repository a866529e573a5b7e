"""Mails: two forms that say the same, and nothing that a name could break out of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.core import mail
from django.test import Client

from accounts import services
from gateway_project.core import mails

ROOT = Path(__file__).resolve().parents[2]
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


def html_of(message):
    [(content, kind)] = [(a.content, a.mimetype) for a in message.alternatives]
    assert kind == "text/html"
    return content


def test_a_text_becomes_a_page_with_a_button_and_facts():
    page = html_of(mails.message("A  new\nbrowser", TEXT, ["x@x.example"]))

    assert 'href="https://gateway.example/accounts/x/?a=1&amp;b=2"' in page
    assert page.count("Open the link") == 1
    assert re.search(r"<td[^>]*>When</td><td[^>]*>2026-05-01 12:00 UTC</td>", page)
    assert 'href="https://gateway.example/help"' in page
    assert "<h1" in page
    assert page.endswith("gateway.example</p></div></body></html>")


def test_it_asks_no_host_for_anything():
    page = mails.html_of("x", TEXT)

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

    def test_a_browser_that_is_new_is_told(self, gateway, alice):
        services.confirm_email(alice, actor=services.Actor("test"))

        assert self.sign_in(alice, FIREFOX) == []  # the first of all
        assert self.sign_in(alice, FIREFOX) == []
        assert self.sign_in(alice, CHROME) == ["A new browser signed in to your account"]
        assert "Chrome on Windows" in mail.outbox[0].body
        assert self.sign_in(alice, CHROME) == []
