"""A person's way with webhooks in a real browser, against a real gateway and a real worker.

With `SCREENSHOTS` set to a folder each page is also pictured there, as the test passes it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from accounts import services
from gateway_project.tests.served import Worker
from gateway_project.tests.test_browser import (  # noqa: F401 - fixtures
    EMAIL,
    PASSWORD,
    _served_site,
    mail_folder,
    served_site,
    site,
)
from portal.tests.browser import NARROW, WIDE

pytestmark = [pytest.mark.slow, pytest.mark.served, pytest.mark.timeout(240)]
ARRIVES_MS = 30_000


@pytest.fixture
def signed_in(gateway, request, open_tab):
    user = services.register(EMAIL, PASSWORD, "Dana").user
    services.confirm_email(user, actor=services.Actor("test"))
    url = request.getfixturevalue("site")

    def sign_in(**look):
        tab = open_tab(url, **look)
        tab.go("/accounts/login/?next=/app/webhooks")
        tab.fill(E_mail=EMAIL, Password=PASSWORD)
        tab.press("Sign in")
        tab.heading("Webhooks")
        return tab

    return sign_in


@pytest.fixture
def worker(gateway, own_redis, tmp_path):
    started = Worker(tmp_path, own_redis.url)
    yield started
    started.close()


def picture(tab, name):
    if folder := os.environ.get("SCREENSHOTS"):
        tab.page.screenshot(path=Path(folder) / f"{name}.png")


def look(tab, name):
    tab.check()
    picture(tab, name)


def test_from_the_first_event_to_a_debugged_body(signed_in, worker):
    tab = signed_in(width=WIDE)
    look(tab, "webhooks-empty-light")
    tab.follow("Open the inbox")
    tab.heading("Inbox")
    look(tab, "inbox-empty-light")

    tab.press("Make a webhook that sends here")
    tab.heading("The webhook is made")
    assert re.match(r"whsec_", tab.page.locator("#made-secret").inner_text())
    tab.press("Send a test")
    tab.page.get_by_text("verified", exact=True).wait_for(timeout=ARRIVES_MS)
    look(tab, "inbox-light")
    headers = tab.page.locator("details[open] pre").first.inner_text()
    tab.page.get_by_text("Byte for byte, as it was signed").first.click()
    body = tab.page.locator("pre.raw").first.inner_text()

    tab.follow("The webhook that sends here")
    tab.heading("Webhook")
    look(tab, "webhook-light")
    tab.page.locator("table.log a, .log td a").first.click()
    tab.heading("Delivery")
    tab.page.get_by_text("delivered", exact=True).wait_for()
    look(tab, "delivery-light")

    tab.follow("Debug a signature")
    tab.fill(Headers_as_your_receiver_got_them=headers)
    tab.page.get_by_label("Body, byte for byte").fill(body)
    tab.press("Check")
    tab.heading("The signature is right")
    tab.page.get_by_label("Body, byte for byte").fill(body.replace("webhook.test", "other"))
    tab.press("Check")
    tab.heading("The signature does not verify")
    tab.page.get_by_text("type is not what we sent").wait_for()
    look(tab, "debugger-light")

    small = signed_in(width=NARROW, theme="dark")
    look(small, "webhooks-narrow-dark")
    small.go("/app/inbox")
    look(small, "inbox-narrow-dark")
    small.page.locator("a", has_text="The webhook that sends here").click()
    small.heading("Webhook")
    look(small, "webhook-narrow-dark")
    small.page.locator("summary[aria-label='More acts']").click()
    small.follow("Edit")
    small.heading("Edit the webhook")
    look(small, "webhook-edit-narrow-dark")
