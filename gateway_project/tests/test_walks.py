"""Walks through the pages as a person takes them: a real Chromium, `manage.py serve`, real mail.

Every page on the way is checked (`Tab.check`): nothing on the console, nothing that the policy
stops, nothing wider than the window, nothing serious that axe-core finds.
"""

from __future__ import annotations

import re
import time
from email import message_from_bytes
from pathlib import Path

import pytest
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value

from accounts import services
from accounts.models import User
from gateway_project.tests.served import wait_until
from portal.tests.browser import NARROW, WIDE

pytestmark = pytest.mark.served

EMAIL, PASSWORD, NEW_PASSWORD = (
    "dana@initech.example",
    "a password of enough words",
    "quite a new one",
)
PAGE_BYTES_MAX = 150_000


class Mailbox:
    """The mails of a served process, which writes each into a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: set[Path] = set()

    def link(self) -> str:
        """The path in the mail that has come since the last look."""
        new = wait_until(lambda: set(self.folder.iterdir()) - self._read)
        self._read |= new
        raw = max(new, key=lambda path: path.stat().st_mtime_ns).read_bytes()
        body = message_from_bytes(raw).get_payload(decode=True).decode()
        return re.search(r"https?://[^/\s]+(/accounts/\S+)", body)[1]

    def forget(self) -> None:
        """What has come so far is of no interest: notices that something was changed."""
        self._read |= set(self.folder.iterdir())


@pytest.fixture
def mailbox(tmp_path):
    folder = tmp_path / "mail"
    folder.mkdir()
    return Mailbox(folder)


@pytest.fixture
def site(serve, mailbox):
    served = serve(
        WORKERS="1",
        EMAIL_URL=f"filemail:///{mailbox.folder}",
        HTTPS_ONLY="false",
        LOGIN_RATE_LIMIT_PER_MINUTE="100",
    )
    return served.url


@pytest.fixture
def dana(gateway):
    user = services.register(EMAIL, PASSWORD, "Dana").user
    services.confirm_email(user, actor=services.Actor("test"))
    return user


def sign_in(tab, password=PASSWORD):
    tab.go("/accounts/login/")
    tab.fill(E_mail=EMAIL, Password=password)
    tab.press("Sign in")


def code_of(secret: str, steps_ahead: int = 0) -> str:
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps_ahead))


def test_from_registering_to_a_new_password(site, mailbox, open_tab):
    tab = open_tab(site)
    tab.go("/")
    tab.check()

    tab.follow("Get a key")
    tab.check()
    tab.fill(E_mail=EMAIL, Password="short")
    tab.press("Register")
    tab.page.get_by_text("too short").wait_for()
    tab.check()
    tab.fill(E_mail=EMAIL, Password=PASSWORD)
    tab.press("Register")
    tab.heading("Look into your mail")
    tab.check()

    tab.go(mailbox.link())
    tab.heading("Is this your address?")
    tab.check()
    tab.press("Yes, confirm it")
    sign_in(tab)
    tab.page.wait_for_url("**/app/")
    tab.check()

    tab.follow("Settings")
    tab.check()
    for room in ("E-mail", "Password", "Two-factor", "Sessions"):
        tab.follow(room)
        tab.check()

    tab.follow("Two-factor")
    tab.follow("Set it up")
    if "reauthenticate" in tab.page.url:
        tab.fill(Password=PASSWORD)
        tab.press("Go on")
    tab.heading("Set up an authenticator app")
    tab.check()
    secret = tab.page.locator("#secret").inner_text()
    tab.fill(Code_from_your_app=code_of(secret))
    tab.press("Turn it on")
    tab.heading("Recovery codes")
    tab.check()
    recovery = tab.page.locator("#codes").inner_text().split()
    tab.press("Sign out")

    sign_in(tab)
    tab.heading("Now the code")
    tab.check()
    tab.page.get_by_label("Code").fill("000000")
    tab.press("Sign in")
    tab.page.get_by_text("This code is wrong").wait_for()
    tab.page.get_by_label("Code").fill(code_of(secret, steps_ahead=1))
    tab.press("Sign in")
    tab.page.wait_for_url("**/app/")
    tab.press("Sign out")

    mailbox.forget()
    tab.go("/accounts/login/")
    tab.follow("Forgot your password?")
    tab.check()
    tab.fill(E_mail=EMAIL)
    tab.press("Send the link")
    tab.heading("Look into your mail")
    tab.check()
    tab.go(mailbox.link())
    tab.heading("Set a new password")
    tab.check()
    tab.fill(New_password=NEW_PASSWORD, The_same_again=NEW_PASSWORD)
    tab.press("Set it")
    tab.heading("Your new password is set")
    tab.check()
    tab.follow("Sign in with it")
    tab.fill(E_mail=EMAIL, Password=NEW_PASSWORD)
    tab.press("Sign in")
    tab.page.get_by_label("Code").fill(recovery[0])
    tab.press("Sign in")
    tab.page.wait_for_url("**/app/")
