"""The operators' pages in a real browser, before the stand-in: its tasks, and each of its pages."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from django.db import connections

from accounts import services
from gateway_project.tests.test_portal_tasks import Clicks
from portal.tests.browser import NARROW
from robin.queue import jobs
from robin.tests.conftest import PASSWORD
from robin.tests.test_message import MIXED

pytestmark = [pytest.mark.slow, pytest.mark.served, pytest.mark.timeout(240)]
FIND = "find a message by its address and retry it"
DEAD = "retry all dead items of one destination"
CLICKS_MAX = {FIND: 5, DEAD: 3}
PAGE = (Path(__file__).resolve().parents[2] / "docs/mail-operations.md").read_text()


def documented(task):
    return int(re.search(rf"\| {task} \|[^|]+\| (\d+) \|", PAGE)[1])


@pytest.fixture
def ada(member):
    ada = member("ROLE_OPERATOR", signed_in=False)
    services.confirm_email(ada.user, actor=services.Actor("test"))
    return ada


@pytest.fixture
def site(serve, robin):
    return serve(
        WORKERS="1",
        HTTPS_ONLY="false",
        RATE_LIMIT_ENABLED="false",
        QUEUE_POLL_SECONDS="0.3",
        ROBIN_QUEUE_SHARE_MAX="1.0",
        ROBIN_CLIENT_API_URL=robin.client_url,
        ROBIN_SERVICE_API_URL=robin.service_url,
    ).url


@pytest.fixture
def enter(site, ada, open_tab):
    """`enter(width=…)`: a tab of ada, who has no workspace, and landed in the room."""

    def sign_in(**look):
        tab = open_tab(site, **look)
        tab.go("/accounts/login/")
        tab.page.locator("[name=login]").fill(ada.user.email)
        tab.page.locator("[name=password]").fill(PASSWORD)
        tab.page.locator("[name=password]").press("Enter")
        tab.page.wait_for_url("**/app/mail-queue")
        return tab

    return sign_in


def test_tasks_take_no_more_clicks_than_they_may(enter, robin):
    tab = enter()
    counted = {FIND: find_and_retry(tab, robin), DEAD: retry_dead(tab, robin)}

    assert counted == {task: documented(task) for task in CLICKS_MAX}
    assert all(counted[task] <= most for task, most in CLICKS_MAX.items())


def find_and_retry(tab, robin):
    item = list(robin.seed.queue.items.values())[3]
    item.state = "READY"
    tries = item.retry
    tab.page.locator("#link", has_text="live").wait_for()
    tab.page.get_by_label("Address or id").fill("ann's@south.example")
    clicks = Clicks(tab)
    clicks.on(tab.page.get_by_role("search", name="Find a message").get_by_role("button"))
    tab.heading("Items")
    clicks.link("ann's@south.example")
    tab.page.get_by_text("As soon as").or_(tab.page.get_by_text("Next try")).first.wait_for()
    tab.page.locator("#item-log:not([hx-get])").wait_for()
    tab.check()
    clicks.link("Retry")
    tab.heading("Retry 1 item?")
    tab.check()
    clicks.button("Retry 1 item")
    tab.page.get_by_text("1 of 1 retried").wait_for()
    tab.check()
    assert item.retry == tries + 1
    return clicks.count


def retry_dead(tab, robin):
    name = "north.example"
    dead = [
        item
        for item in robin.seed.queue.items.values()
        if item.state == "DEAD" and any(r.endswith(f"@{name}") for r in item.envelopes[0].rcpts[:5])
    ]
    tab.go("/app/mail-queue")
    clicks = Clicks(tab)
    clicks.on(tab.page.get_by_label(f"{len(dead)} dead for {name}"))
    clicks.link(f"Retry all {len(dead)}")
    tab.heading(f"Retry {len(dead)} items?")
    clicks.button(f"Retry {len(dead)} items")
    tab.page.get_by_text(f"{len(dead)} of {len(dead)} retried").wait_for()
    assert all(item.state != "DEAD" for item in dead)
    return clicks.count


@pytest.mark.parametrize("locale", ["en-GB", "de-DE"])
@pytest.mark.parametrize(
    "look", [{"width": 1440}, {"width": NARROW, "theme": "dark"}], ids=["wide", "narrow"]
)
def test_each_page_is_in_order(enter, robin, look, locale):
    robin.seed.put("north.example/ann/new/20261129.html.eml", MIXED)
    robin.seed.note("ERROR", "smtp.EmailDelivery", "x" * 400)
    item = next(iter(robin.seed.queue.items.values()))
    tab = enter(**look, locale=locale)
    tab.page.locator("#link", has_text="live").wait_for()
    tab.page.locator("#destinations td.message").first.wait_for()
    tab.check()
    for path in (
        *("/app/mail/items", "/app/mail/items?state=DEAD", "/app/mail/items?search=nobody"),
        *(f"/app/mail/items/{item.uid}?log=1", "/app/mail/act?action=delete&state=DEAD&all=1"),
        *("/app/mail/actions", "/app/mail/storage", "/app/mail/storage?path=/north.example/ann"),
        *("/app/mail/logs", "/app/mail/logs?level=ERROR", "/app/mail/charts"),
        *("/app/mail/charts?range=1h", "/app/mail/alerts"),
    ):
        tab.go(path)
        tab.check()
    tab.go("/app/mail/message?path=/north.example/ann/new/20261129.html.eml")
    tab.page.frame_locator("iframe").get_by_text("Schön").wait_for()
    tab.check()


def test_chosen_items_are_counted_and_done(enter, robin):
    tab = enter()
    tab.go("/app/mail/items?state=READY")
    boxes = tab.page.locator("input[name=uid]")
    for n in range(3):
        boxes.nth(n).check()
    tab.page.get_by_text("3 chosen").wait_for()
    tab.check()
    tab.press("Bounce")
    tab.heading("Bounce 3 items?")
    tab.press("Bounce 3 items")
    tab.page.get_by_text("3 of 3 bounced").wait_for()

    assert robin.seed.queue.count("DEAD") == 11


def test_an_act_on_many_shows_how_far_it_is(enter, robin):
    tab = enter()
    count = robin.seed.queue.count("READY")
    tab.go("/app/mail/act?action=bounce&state=READY&all=1")
    tab.press(f"Bounce {count} items")
    tab.page.get_by_text(f"0 of {count}").wait_for()
    tab.check()
    tab.page.get_by_role("button", name="Stop").wait_for()
    work_all()
    tab.page.get_by_text(f"{count} bounced").wait_for()
    tab.page.get_by_text("complete").wait_for()
    tab.check()


def work_all():
    """As a worker does: beside Playwright's loop, which is this thread's."""

    def work():
        try:
            while jobs.work():
                pass
        finally:
            connections.close_all()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_the_table_follows_the_queue(enter, robin):
    from robin.standin.queue import Envelope

    tab = enter()
    tab.page.locator("#link", has_text="live").wait_for()
    robin.seed.queue.enqueue("ESMTP", [Envelope("x@y.example", ["a@new-one.example"])])

    tab.page.get_by_role("link", name="new-one.example", exact=True).wait_for()


def test_a_mails_html_runs_nothing_and_asks_nobody(enter, robin):
    html = (
        b"From: a@b.example\r\nContent-Type: text/html\r\n\r\n"
        b"<p>seen</p><script>top.location='/app/'</script>"
        b"<img src='http://evil.example/pixel'><meta http-equiv=refresh content='0;url=//evil'>"
        b"<a href='http://evil.example/'>a link</a>"
    )
    robin.seed.put("north.example/ann/new/20261129.bad.eml", html)
    tab = enter()
    asked = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.go("/app/mail/message?path=/north.example/ann/new/20261129.bad.eml")
    frame = tab.page.frame_locator("iframe")
    frame.get_by_text("seen").wait_for()
    frame.get_by_text("a link").click()
    tab.check()

    assert tab.page.url.endswith("bad.eml")
    assert not [url for url in asked if "evil" in url]
