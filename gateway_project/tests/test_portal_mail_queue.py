"""The page of the live mail queue: who may enter, what opens its socket, and a walk in Chromium."""

from __future__ import annotations

import json

import pytest

from accounts import services
from accounts.tests.shapes import refusal
from gateway_project.tests.test_admin import Browser
from portal.tests.browser import NARROW
from robin.access import sessions, tickets
from robin.models import RefreshFamily, RobinAccess
from robin.tests.conftest import PASSWORD

PAGE, TICKET = "/app/mail-queue", "/app/mail-queue/ticket"


@pytest.fixture
def enter(gateway, member):
    """`enter(role)`: somebody who signed in to the portal, and who they are."""

    def sign_in(role):
        person = member(role, signed_in=False)
        services.confirm_email(person.user, actor=services.Actor("test"))
        browser = Browser(gateway)
        browser.post("/accounts/login/", login=person.user.email, password=PASSWORD)
        return browser, person.user

    return sign_in


def ask_for_a_ticket(browser):
    browser.get("/accounts/password/change/")  # any page with a form sets the cookie
    headers = {"X-CSRFToken": browser.cookies["csrftoken"], "Accept": "application/json"}
    return browser._request("POST", TICKET, headers=headers)


@pytest.mark.parametrize(
    "role", [None, "ROLE_READONLY", "ROLE_USER", "ROLE_OPERATOR", "ROLE_ADMIN"]
)
def test_it_is_there_for_who_may_see_the_queue(enter, robin, role):
    browser, _ = enter(role)
    page, ticket = browser._request("GET", PAGE), ask_for_a_ticket(browser)

    if role is None:
        assert refusal(page) == refusal(ticket) == (404, "not_found")
    else:
        assert (page.status_code, ticket.status_code) == (200, 201)


def test_a_stranger_signs_in_first(gateway):
    r = Browser(gateway)._request("GET", PAGE)

    assert r.headers["location"] == f"/accounts/login/?next={PAGE}"


def test_without_a_mail_server_it_says_so(enter, settings):
    settings.ROBIN_CLIENT_API_URL = ""
    browser, _ = enter("ROLE_USER")

    assert "No mail server is connected" in browser.get(PAGE).text


class TestTickets:
    def test_they_stand_for_one_session_without_tokens(self, enter, robin):
        browser, user = enter("ROLE_USER")
        texts = [json.loads(ask_for_a_ticket(browser).text)["ticket"] for _ in "12"]
        family = RefreshFamily.objects.get(user=user)

        assert {tickets.redeem(text)[0] for text in texts} == {family.pk}
        assert not family.tokens.exists()

    def test_an_ended_session_is_followed_by_another(self, enter, robin):
        browser, user = enter("ROLE_USER")
        ask_for_a_ticket(browser)
        first = RefreshFamily.objects.get(user=user)
        sessions.revoke(first.pk, because="staff", actor=services.Actor("test"))
        ask_for_a_ticket(browser)

        assert RefreshFamily.objects.filter(user=user).count() == 2

    def test_who_lost_the_role_gets_none(self, enter, robin):
        browser, user = enter("ROLE_USER")
        RobinAccess.objects.get(user=user).delete()

        assert refusal(ask_for_a_ticket(browser)) == (404, "not_found")


@pytest.mark.slow
@pytest.mark.served
def test_a_walk(serve, robin, member, open_tab):
    ada = member("ROLE_OPERATOR", signed_in=False)
    services.confirm_email(ada.user, actor=services.Actor("test"))
    served = serve(
        WORKERS="1",
        HTTPS_ONLY="false",
        QUEUE_POLL_SECONDS="0.3",
        CIRCUIT_BREAKER_TIMEOUT_SECONDS="1",
        ROBIN_CLIENT_API_URL=robin.client_url,
        ROBIN_SERVICE_API_URL=robin.service_url,
    )
    wide, phone = open_tab(served.url), open_tab(served.url, width=NARROW, theme="dark")
    for tab in (wide, phone):
        tab.go(f"/accounts/login/?next={PAGE}")
        tab.fill(E_mail=ada.user.email, Password=PASSWORD)
        tab.press("Sign in")
        tab.page.locator("#link", has_text="live").wait_for()
        tab.check()

    assert int(wide.page.locator("[data-total=total]").inner_text()) > 100
    uid = wide.page.locator("#items tr td:last-child").first.get_attribute("title")
    ada.user.refresh_from_db()  # the served process hashes passwords at more cost, and did
    ada.enter()
    assert ada.request("DELETE", f"/api/v1/queue/{uid}").status_code == 200
    for tab in (wide, phone):
        tab.page.locator(f"[title='{uid}']").wait_for(state="detached")
    wide.check()

    robin.run(robin.client.stop())
    # What was read within the last half minute is shown as it is.
    wide.page.get_by_text("What is shown may be old").wait_for(timeout=45_000)
    assert wide.page.locator("#link").inner_text() == "down"
    wide.check()
    robin.run(robin.client.start())
    wide.page.locator("#link", has_text="live").wait_for()
    assert wide.page.locator("#trouble").is_hidden()

    RobinAccess.objects.get(user=ada.user).delete()
    wide.expect_status(404)
    wide.page.locator("#link", has_text="ended").wait_for()
    assert "Your role does not show the queue" in wide.page.locator("#trouble").inner_text()
