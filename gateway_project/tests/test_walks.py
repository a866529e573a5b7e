"""Walks through the pages in a real Chromium, against `manage.py serve`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from allauth.mfa.totp.internal.auth import (
    format_hotp_value,
    hotp_value,
    yield_hotp_counters_from_time,
)

from gateway_project.tests.served import wait_until
from portal.tests.browser import NARROW, WIDE

pytestmark = pytest.mark.served

EMAIL, PASSWORD = "dana@initech.example", "a password of enough words"
THREE_TIMES = 3


def code_of(secret: str) -> str:
    return format_hotp_value(hotp_value(secret, next(iter(yield_hotp_counters_from_time()))))


class Mailbox:
    """The mails of a served process, which writes each into a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: set[Path] = set()

    def link(self) -> str:
        """The path in the newest mail, once it is there."""
        new = wait_until(lambda: set(self.folder.glob("*")) - self._seen)
        self._seen |= new
        text = max(new, key=lambda path: path.stat().st_mtime_ns).read_text()
        return re.search(r"https?://[^/\s]+(/accounts/\S+)", text)[1]


@pytest.fixture
def mailbox(tmp_path):
    folder = tmp_path / "mail"
    folder.mkdir()
    return Mailbox(folder)


@pytest.fixture
def site(serve, mailbox):
    served = serve(
        WORKERS="1",
        EMAIL_URL=f"filemail://{mailbox.folder}",
        HTTPS_ONLY="false",
        LOGIN_RATE_LIMIT_PER_MINUTE="100",
    )
    return served.url


@pytest.mark.parametrize(("width", "theme"), [(WIDE, "light"), (NARROW, "dark")])
def test_from_registering_to_a_second_factor(site, mailbox, open_tab, width, theme):
    tab = open_tab(site, width=width, theme=theme)
    tab.go("/")
    tab.check()
    tab.follow("Register")
    tab.check()
    tab.fill(Email=EMAIL, Password=PASSWORD)
    tab.press("Sign Up")
    tab.check()
