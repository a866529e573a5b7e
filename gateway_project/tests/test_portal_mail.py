"""The operators' pages of mail: who may what, what is shown, what is done, what it costs.

Against the stand-in; `test_portal_mail_operations.py` goes through it in a browser.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from html import unescape

import pytest
from django.template.loader import render_to_string
from django.utils import translation

from accounts.models import AuditEvent
from accounts.tests.shapes import refusal
from gateway_project.core import clock
from gateway_project.tests.served import wait_until
from gateway_project.tests.test_admin import Browser, signed_in
from robin.logs import parsing
from robin.models import QueueJob
from robin.queue import jobs, overview, scan
from robin.tests.test_message import MIXED

UID = "6f0c1a52-7c7e-4b1b-9a55-2d4b8b7f1e10"
PAGES = {
    "/app/mail-queue": "VIEW_QUEUE",
    "/app/mail/items": "VIEW_QUEUE",
    f"/app/mail/items/{UID}": "VIEW_QUEUE",
    "/app/mail/act?action=retry&state=DEAD&all=1": "MANAGE_QUEUE",
    "/app/mail/act?action=delete&state=DEAD&all=1": "DELETE_QUEUE_ITEMS",
    "/app/mail/actions": "VIEW_QUEUE",
    "/app/mail/storage": "VIEW_STORAGE",
    "/app/mail/logs": "VIEW_LOGS",
    "/app/mail/logs/export": "VIEW_LOGS",
    "/app/mail/failures": "VIEW_LOGS",
    "/app/mail/charts": "VIEW_METRICS",
    "/app/mail/alerts": "VIEW_QUEUE",
}
THRESHOLDS = {"oldest": "240", "growth": "500", "dead": "3", "bounce": "20"}
ROLES = ("ROLE_READONLY", "ROLE_USER", "ROLE_OPERATOR", "ROLE_ADMIN")


@pytest.fixture
def enter(gateway, member):
    """`enter(role)`: a browser of somebody with that role, and nothing else."""

    def sign_in(role="ROLE_OPERATOR"):
        person = member(role, signed_in=False)
        browser = signed_in(gateway, person.user)
        browser.user = person.user
        return browser

    return sign_in


@pytest.fixture
def operator(enter, robin):
    return enter()


def send(browser, page, **fields):
    """Send the form of an act's page; the page that it leads to."""
    html = browser.get(page).text
    form = re.search(r'<form class="card form".*?</form>', html, re.DOTALL)[0]
    given = [
        (unescape(name), unescape(value))
        for name, value in re.findall(r'type="hidden" name="([^"]+)" value="([^"]*)"', form)
    ]
    return given + list(fields.items())


def post(browser, path, fields):
    """As a form does; the first answer."""
    return browser._request(
        "POST",
        path,
        content="&".join(f"{name}={value.replace('@', '%40')}" for name, value in fields),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )


def counted(robin, *, state=None):
    """By destination, of what the stand-in really has."""
    found = Counter()
    for item in robin.seed.queue.items.values():
        if state is None or item.state == state:
            rcpts = list(dict.fromkeys(r for e in item.envelopes for r in e.rcpts))[:5]
            found.update({rcpt.rpartition("@")[2] for rcpt in rcpts})
    return found


class TestWhoMay:
    @pytest.mark.parametrize("role", [None, *ROLES])
    def test_each_page_by_role(self, enter, robin, role):
        from robin.permissions import permissions_of

        browser = enter(role)
        for path, permission in PAGES.items():
            r = browser._request("GET", path)
            if permission in permissions_of(role):
                assert r.status_code == 200, path
            else:
                refused = (404, "not_found") if role is None else (403, "permission_denied")
                assert refusal(r) == refused, path

    def test_a_stranger_signs_in_first(self, gateway):
        for path in PAGES:
            r = Browser(gateway)._request("GET", path)
            assert r.headers["location"].startswith("/accounts/login/?next=/app/mail"), path

    def test_who_only_looks_sees_no_log_and_no_act(self, enter, robin):
        browser = enter("ROLE_READONLY")
        pages = [browser.get(path).text for path in ("/app/mail-queue", "/app/mail/items")]
        item = next(iter(robin.seed.queue.items))
        pages.append(browser.get(f"/app/mail/items/{item}?log=1").text)

        for page in pages:
            assert "Last error" not in page
            assert 'href="/app/mail/logs' not in page
            assert "/app/mail/act?" not in page
        assert not any("/logs" in target for _, target in robin.client.asked)

    def test_the_log_is_given_by_its_own_setting(self, enter, robin, settings):
        settings.ROBIN_LOG_ROLES = ["ROLE_READONLY"]

        reader, admin = enter("ROLE_READONLY"), enter("ROLE_ADMIN")

        assert "<h1>Log</h1>" in reader.get("/app/mail/logs").text
        assert "does not show this" in admin.get("/app/mail/logs").text

    def test_a_refusal_is_in_the_trail(self, enter, robin):
        browser = enter("ROLE_READONLY")
        browser._request("GET", "/app/mail/logs")

        row = AuditEvent.objects.get(action="access.refused")
        assert (row.actor, row.target) == (browser.user.email, "VIEW_LOGS")

    def test_without_a_workspace_its_pages_are_not_offered(self, operator):
        landing = operator.get("/app/")
        page = operator.get("/app/mail/items").text

        assert "<h1>Mail queue</h1>" in landing.text
        assert "/app/keys" not in page
        assert 'href="/app/mail-queue" aria-current="page"' in page

    def test_pages_cost_what_calls_of_the_api_do(self, operator, settings):
        settings.RATE_LIMIT_ENABLED = True
        settings.RATE_LIMIT_PER_MINUTE = 3
        *taken, last = [operator._request("GET", "/app/mail/alerts") for _ in range(4)]

        assert [r.status_code for r in taken] == [200] * 3
        assert refusal(last) == (429, "rate_limited")


class TestTheQueue:
    def test_by_destination_with_the_numbers_that_robin_has(self, operator, robin):
        page = operator.get("/app/mail-queue").text

        for state, word in (("READY", "ready"), ("DEAD", "dead"), ("CLAIMED", "in delivery")):
            for name, count in counted(robin, state=state).items():
                assert f'aria-label="{count} {word} for {name}"' in page

    def test_a_destination_is_that_domain_and_none_that_ends_so(self, operator, robin):
        from robin.standin.queue import Envelope

        for rcpt in ("a@North.example", "a@not-north.example", "north.example@evil.example"):
            robin.seed.queue.enqueue("ESMTP", [Envelope("x@y.example", [rcpt])])
        expected = counted(robin)["north.example"] + 1
        page = operator.get("/app/mail/items?destination=north.example").text

        assert f"of {expected}" in page.replace(",", "")

    def test_watching_costs_robin_nothing_more(self, operator, robin, settings):
        settings.QUEUE_POLL_SECONDS = 3600
        for path in ("/app/mail-queue", "/app/mail/items", "/app/mail/failures"):
            operator.get(path)
        assert any("/logs" in target for _, target in robin.client.asked)
        robin.client.asked.clear()
        robin.service.asked.clear()
        for _ in range(5):
            for path in (
                *("/app/mail-queue", "/app/mail/failures", "/app/mail/items?state=DEAD"),
                *("/app/mail/items?search=ann", "/app/mail/actions", "/app/mail/charts"),
                *("/app/mail/alerts", "/app/mail/act?action=retry&state=DEAD&all=1"),
            ):
                assert operator._request("GET", path).status_code == 200

        assert robin.client.asked == []
        assert robin.service.asked == []

    def test_one_is_found_by_its_address_and_its_id(self, operator, robin):
        item = list(robin.seed.queue.items.values())[3]  # ann's@…
        for word in ("ann%27s%40south", item.uid, item.session_uid):
            page = operator.get(f"/app/mail/items?search={word}").text
            assert f"/app/mail/items/{item.uid}" in page
            assert "1 to 1 of 1" in page

    def test_pages_of_items(self, operator, robin):
        first, third = (operator.get(f"/app/mail/items?page={n}").text for n in (1, 3))

        assert "1 to 50 of 120" in first
        assert "101 to 120 of 120" in third
        seen = set(re.findall(r'name="uid" value="([^"]+)"', first))
        assert seen.isdisjoint(re.findall(r'name="uid" value="([^"]+)"', third))

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("page=0", "1 to 50 of 120"),
            ("page=99999999", "1 to 50 of 120"),
            ("page=x", "1 to 50 of 120"),
            ("page=9", "There are 120, and no such page of them."),
            ("tries=-1", "Fix the filter above"),
            ("state=NONE", "Fix the filter above"),
            ("search=%F0", "No item matches"),
        ],
    )
    def test_what_is_no_filter_is_said_or_left_out(self, operator, query, expected):
        page = operator.get(f"/app/mail/items?{query}").text

        assert "<h1>Items</h1>" in page
        assert expected in page

    def test_what_no_store_takes_is_refused(self, operator):
        assert refusal(operator.get("/app/mail/items?search=%00")) == (422, "validation_error")

    def test_names_in_it_are_names(self, operator, robin):
        from robin.standin.queue import Envelope

        rcpt = '<img src=x onerror=alert(1)>"\u202e@<b>.example'
        item = robin.seed.queue.enqueue("ESMTP", [Envelope("x@y.example", [rcpt])])
        for path in ("/app/mail-queue", "/app/mail/items", f"/app/mail/items/{item.uid}"):
            page = operator.get(path).text
            assert "<img src=x" not in page
            assert "<b>.example" not in page


def files_of(browser, path):
    """`{name: rows}` of the tables that a page gives as files, without their heads."""
    page = browser.get(path).text.replace("&amp;", "&")
    found = {}
    for link in sorted(set(re.findall(r'href="(\?[^"]*csv=[\w-]+)"', page))):
        r = browser.get(path.partition("?")[0] + link)
        assert r.headers["content-type"].startswith("text/csv"), (path, link)
        head, *rows = csv.reader(io.StringIO(r.text))
        assert all(len(row) == len(head) for row in rows)
        found[link.rpartition("=")[2]] = [dict(zip(head, row, strict=True)) for row in rows]
    return found


class TestFiles:
    """Each table and chart as CSV: of the same filters, for whoever the page is for."""

    PATHS = (
        *("/app/mail-queue", "/app/mail/items", "/app/mail/actions", "/app/mail/storage"),
        *("/app/mail/logs", "/app/mail/charts", "/app/mail/alerts"),
    )

    def test_each_page_has_its_own(self, enter, robin):
        admin = enter("ROLE_ADMIN")
        uid = next(iter(robin.seed.queue.items))
        seen = set()
        for path in (*self.PATHS, f"/app/mail/items/{uid}?log=1"):
            seen |= set(files_of(admin, path))

        assert seen >= {"destinations", "items", "queue-size", "names", "log", "alerts"}

    def test_all_that_match_and_not_a_page_of_them(self, operator, robin):
        dead = {i.uid for i in robin.seed.queue.items.values() if i.state == "DEAD"}

        everything = files_of(operator, "/app/mail/items")["items"]
        some = files_of(operator, "/app/mail/items?state=DEAD&page=1")["items"]

        assert {row["id"] for row in everything} == set(robin.seed.queue.items)
        assert {row["id"] for row in some} == dead
        assert {row["state"] for row in some} == {"DEAD"}

    def test_a_long_queue_is_read_part_by_part(self, operator, robin, monkeypatch):
        monkeypatch.setattr(overview, "parts", lambda view: 3)  # the last two have nothing
        numbers = []
        part = overview.part

        def noted(view, number):
            numbers.append(number)
            return part(view, number)

        monkeypatch.setattr(overview, "part", noted)

        rows = files_of(operator, "/app/mail/items")["items"]

        assert numbers == [0, 1, 2]
        assert len(rows) == len({row["id"] for row in rows}) == 120

    def test_destinations_are_those_that_the_page_counts(self, operator, robin):
        rows = files_of(operator, "/app/mail-queue?to=north")["destinations"]

        [row] = [row for row in rows if row["destination"] == "north.example"]
        assert all("north" in row["destination"] for row in rows)
        assert int(row["dead"]) == counted(robin, state="DEAD")["north.example"]

    def test_no_cell_is_a_formula(self, enter, robin):
        from robin.standin.queue import Envelope

        formula = '=HYPERLINK("https://evil.example";"x")@north.example'
        robin.seed.queue.enqueue("ESMTP", [Envelope("x@y.example", [formula])])
        robin.seed.note("ERROR", "=cmd", "@SUM(1+1)")
        robin.seed.put("=1+1/new/=x.eml", MIXED)
        admin = enter("ROLE_ADMIN")
        guarded = 0
        for path in self.PATHS:
            for rows in files_of(admin, path).values():
                for cell in (cell for row in rows for cell in row.values()):
                    assert not cell.startswith(("=", "+", "@")), cell
                    guarded += "HYPERLINK" in cell or "@SUM" in cell or "=1+1" in cell

        assert guarded >= 3

    def test_who_may_not_see_a_page_gets_no_file_of_it(self, enter, robin):
        browser = enter("ROLE_READONLY")

        for path, name in (("logs", "log"), ("storage", "names"), ("charts", "mails-in")):
            r = browser.get(f"/app/mail/{path}?csv={name}")
            may = browser.get(f"/app/mail/{path}").status_code == 200
            assert may or refusal(r) == (403, "permission_denied"), path
        [row, *_] = files_of(browser, "/app/mail-queue")["destinations"]
        assert "last_error" not in row
        assert refusal(enter(None).get("/app/mail/items?csv=items")) == (404, "not_found")

    def test_taking_the_log_away_is_in_the_trail(self, enter, robin):
        files_of(enter("ROLE_ADMIN"), "/app/mail/logs?search=smtp")

        assert AuditEvent.objects.get(action="robin.log_exported").details["search"] == "smtp"

    def test_when_nothing_is_known_there_is_no_empty_file(self, operator, robin):
        robin.run(robin.client.stop())

        for path, name in (("-queue", "destinations"), ("/items", "items"), ("/storage", "names")):
            r = operator.get(f"/app/mail{path}?csv={name}")
            assert r.status_code in (502, 503, 504), path
            assert "text/csv" not in r.headers["content-type"]

    def test_what_no_table_is_called_is_not_there(self, operator, robin):
        assert refusal(operator.get("/app/mail/items?csv=secrets")) == (404, "not_found")


class TestWhenRobinIsNotWell:
    def test_never_read_and_away(self, operator, robin):
        robin.run(robin.client.stop())
        page = operator.get("/app/mail/items").text

        assert "Robin does not answer" in page
        assert "Nothing is known of its queue" in page

    def test_what_was_known_is_shown_with_its_age(self, operator, robin, monkeypatch, settings):
        settings.QUEUE_POLL_SECONDS = 0.1
        wait_until(lambda: "1 to 50 of 120" in operator.get("/app/mail/items").text)
        monkeypatch.setattr(scan, "OLD_SECONDS", -1.0)
        robin.run(robin.client.stop())
        away = re.compile(r"Robin does not answer.*What is shown is \d+ [a-z 0-9]+ old", re.DOTALL)
        # A rest is nine times as long as the last look took, which beside other tests was long.
        wait_until(lambda: away.search(operator.get("/app/mail/items").text), 90)

        assert "1 to 50 of 120" in operator.get("/app/mail/items").text

    def test_busy_is_not_down(self, operator, robin, monkeypatch):
        from robin.queue import overview

        monkeypatch.setattr(overview, "PATIENCE_SECONDS", 0.05)
        robin.client.faults.latency_seconds = 1.0
        page = operator.get("/app/mail-queue").text

        assert "Robin is busy" in page
        assert "Robin does not answer" not in page

    def test_its_own_words_are_not_shown(self, operator, robin):
        robin.client.faults.answer = "500"
        for path in ("/app/mail/storage", "/app/mail/logs"):
            page = operator.get(path).text
            assert "cannot be read" in page
            assert "Robin failed" in page

    def test_without_a_mail_server_each_page_says_so(self, enter, settings):
        settings.ROBIN_CLIENT_API_URL = ""
        browser = enter()
        for path in ("/app/mail-queue", "/app/mail/items", "/app/mail/storage", "/app/mail/logs"):
            r = browser._request("GET", path)
            assert r.status_code == 200
            assert "No mail server is connected" in r.text


class TestActs:
    def test_the_number_is_shown_before(self, operator, robin):
        count = counted(robin, state="DEAD")["north.example"]
        query = "state=DEAD&destination=north.example"
        page = operator.get(f"/app/mail/act?action=retry&{query}&all=1").text

        assert f"<h1>Retry {count} items?</h1>" in page
        assert f"Retry {count} items</button>" in page

    def test_all_that_match_and_only_those(self, operator, robin):
        before = counted(robin, state="DEAD")
        query = "state=DEAD&destination=north.example"
        fields = send(operator, f"/app/mail/act?action=retry&{query}&all=1")
        r = post(operator, "/app/mail/act/do", fields)
        page = operator.get(r.headers["location"]).text

        count = before["north.example"]
        assert r.headers["location"] == "/app/mail/items?destination=north.example&state=DEAD"
        assert f"{count} of {count} retried" in page
        assert counted(robin, state="DEAD")["north.example"] == 0
        assert robin.seed.queue.count("DEAD") == 8 - count

    def test_sent_twice_it_is_done_once(self, operator, robin):
        uid = next(i.uid for i in robin.seed.queue.items.values() if i.state == "READY")
        fields = send(operator, f"/app/mail/act?action=retry&uid={uid}")
        tries = robin.seed.queue.items[uid].retry
        for _ in "12":
            post(operator, "/app/mail/act/do", fields)

        assert robin.seed.queue.items[uid].retry == tries + 1

    def test_it_is_in_the_trail_before_and_after(self, operator, robin):
        uid = next(i.uid for i in robin.seed.queue.items.values() if i.state == "READY")
        post(operator, "/app/mail/act/do", send(operator, f"/app/mail/act?action=bounce&uid={uid}"))
        rows = AuditEvent.objects.filter(target=uid).order_by("at", "id")

        assert [row.action for row in rows] == ["robin.queue.bounce", "robin.queue.bounce.result"]
        assert {row.actor for row in rows} == {operator.user.email}
        assert rows[1].details == {"done": 1, "requested": 1, "unknown": 0, "left_out": 0}
        assert "robin.queue.bounce" in operator.get(f"/app/mail/items/{uid}").text

    def test_what_is_being_delivered_is_left_alone_unless_forced(self, operator, robin):
        uid = next(i.uid for i in robin.seed.queue.items.values() if i.state == "CLAIMED")
        path = f"/app/mail/act?action=retry&uid={uid}"
        page = operator.get(path).text
        left = post(operator, "/app/mail/act/do", send(operator, path))
        result_page = operator.get(left.headers["location"]).text
        state = robin.seed.queue.items[uid].state
        post(operator, "/app/mail/act/do", [*send(operator, path), ("force", "on")])

        assert "being delivered at this moment" in page
        assert "0 of 1 retried; 1 left alone" in result_page
        assert state == "CLAIMED"
        assert robin.seed.queue.items[uid].state == "READY"

    def test_many_are_done_behind_with_progress(self, operator, robin):
        count = robin.seed.queue.count("READY")
        fields = send(operator, "/app/mail/act?action=bounce&state=READY&all=1")
        r = post(operator, "/app/mail/act/do", fields)
        job = QueueJob.objects.get()
        waiting = operator.get(r.headers["location"]).text
        jobs.work()
        part = operator._request("GET", r.headers["location"], headers={"HX-Request": "true"})

        assert r.headers["location"] == f"/app/mail/actions/{job.pk}"
        assert f"0 of {count}" in waiting
        assert 'hx-trigger="every 2s"' in waiting
        assert part.status_code == 286  # there is nothing more to ask for
        assert f"{count} of {count}" in part.text
        assert robin.seed.queue.count("READY") == 0
        assert "robin.queue.bounce" in AuditEvent.objects.values_list("action", flat=True)
        assert str(job.pk) in operator.get("/app/mail/actions").text

    def test_of_many_it_is_said_what_may_go_wrong_and_why_they_wait(self, operator, robin):
        fields = send(operator, "/app/mail/act?action=retry&state=READY&all=1")
        r = post(operator, "/app/mail/act/do", fields)
        QueueJob.objects.update(last_try=3, is_in_doubt=True, detail=jobs.WAITS)
        page = operator.get(r.headers["location"]).text

        assert "Of these, 3 have no try left" in page
        assert "What Robin is delivering at this moment goes out twice." in page
        assert "Robin does not answer. The rest is tried when it does" in page

    def test_one_can_be_stopped(self, operator, robin):
        fields = send(operator, "/app/mail/act?action=bounce&state=READY&all=1")
        r = post(operator, "/app/mail/act/do", fields)
        job = r.headers["location"]
        token = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', operator.get(job).text)[1]
        post(operator, f"{job}/cancel", [("csrfmiddlewaretoken", token)])
        jobs.work()

        assert "stopped" in operator.get(job).text
        assert robin.seed.queue.count("READY") > 100

    def test_robin_fails_in_the_middle_and_nobody_invents_a_number(self, operator, robin):
        uid = next(i.uid for i in robin.seed.queue.items.values() if i.state == "READY")
        fields = send(operator, f"/app/mail/act?action=retry&uid={uid}")
        robin.client.faults.answer, robin.client.faults.prefix = "reset", "/client/queue/retry"
        r = post(operator, "/app/mail/act/do", fields)
        page = unescape(operator.get(r.headers["location"]).text)

        assert "Of 1 items 0 were retried; of 1 nobody knows." in page
        result = AuditEvent.objects.get(action="robin.queue.retry.result")
        assert (result.details["done"], result.details["unknown"]) == (0, 1)

    def test_the_whole_queue_is_nothing_that_anybody_means(self, operator, robin):
        r = operator._request("GET", "/app/mail/act?action=delete&all=1")

        assert r.status_code == 400
        assert "whole queue" in r.text

    def test_a_retry_that_makes_an_item_dead_says_so(self, operator, robin):
        item = next(i for i in robin.seed.queue.items.values() if i.state == "READY")
        item.retry = item.retries_max - 1
        page = operator.get(f"/app/mail/act?action=retry&uid={item.uid}").text

        assert "no try left" in page


class TestAnItem:
    def test_its_log_comes_by_itself_and_by_its_ids(self, operator, robin):
        item = next(iter(robin.seed.queue.items.values()))
        robin.seed.note("WARN", "smtp.EmailDelivery", f"{item.session_uid} Greylisted for a while")
        page = operator.get(f"/app/mail/items/{item.uid}").text
        url = unescape(re.search(r'hx-get="([^"]+\?log=1[^"]*)"', page)[1])
        part = operator._request("GET", url, headers={"HX-Request": "true"}).text

        assert "Greylisted for a while" not in page
        assert "Greylisted for a while" in part
        assert "<html" not in part

    def test_one_that_is_gone_has_its_log_all_the_same(self, operator, robin):
        robin.seed.note("INFO", "queue.RelayDequeue", f"Removed {UID} from the queue")
        page = operator.get(f"/app/mail/items/{UID}?log=1").text

        assert "It is not in the queue: it was delivered, or deleted." in page
        assert "from the queue" in page

    @pytest.mark.parametrize("uid", ["x", "%2e%2e", "1" * 300, UID.upper() + "x"])
    def test_what_is_no_id_is_not_found(self, operator, uid):
        r = operator._request("GET", f"/app/mail/items/{uid}")

        assert r.status_code == 404
        assert "no such item in the queue" in r.text


class TestTheStore:
    def test_a_mail_is_shown_safely_and_noted(self, operator, robin):
        robin.seed.put("north.example/ann/new/20261129.html.eml", MIXED)
        path = "/north.example/ann/new/20261129.html.eml"
        page = operator.get(f"/app/mail/message?path={path}").text
        address = unescape(re.search(r'<iframe [^>]*src="([^"]+)"', page)[1])
        frame = operator._request("GET", address)

        assert re.search(r"<iframe [^>]*\bsandbox\b(?!=)", page)
        assert "Schön" in page
        assert "a/../b.pdf" in page
        assert "<p>Schön</p>" in frame.text
        policy = frame.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert re.search(r"; sandbox;", policy)
        assert "script-src" not in policy
        row = AuditEvent.objects.get(action="robin.mail_read")
        assert (row.actor, row.details["path"]) == (operator.user.email, path)

    def test_its_html_is_no_page_of_its_own(self, operator, robin):
        robin.seed.put("north.example/ann/new/20261129.html.eml", MIXED)
        path = "/app/mail/message/html?path=/north.example/ann/new/20261129.html.eml"
        r = operator._request("GET", path, headers={"Sec-Fetch-Dest": "document"})

        assert r.status_code == 302
        assert r.headers["location"].startswith("/app/mail/message?path=")

    def test_any_name_that_is_listed_can_be_opened_or_says_that_it_cannot(self, operator, robin):
        names = ["a+b.eml", "50% off.eml", "%2e.eml", "<b>.eml", "é.eml", "a..b.eml", "UPPER.EML"]
        for name in names:
            robin.seed.put(f"west.example/x/new/{name}", b"Subject: x\r\n\r\nhello")
        page = operator.get("/app/mail/storage?path=/west.example/x/new").text
        links = [unescape(one) for one in re.findall(r'href="(/app/mail/message\?[^"]+)"', page)]

        assert len(links) == len(names) - 1
        assert page.count("cannot be opened") == 1
        for link in links:
            assert "hello" in operator.get(link).text

    def test_the_whole_mail_is_a_file(self, operator, robin):
        (path,) = [p for p in robin.seed.mails if p.endswith("big.eml")]
        page = operator.get(f"/app/mail/message?path=/{path}").text
        file = operator._request("GET", f"/app/mail/message/raw?path=/{path}")

        assert "of 2.1 MB are shown" in page or "The download has all of it" in page
        assert file.content == robin.seed.mails[path]
        assert file.headers["content-disposition"].startswith("attachment;")
        assert AuditEvent.objects.filter(action="robin.mail_downloaded").count() == 1

    @pytest.mark.parametrize("path", ["../x.eml", "%2e%2e/x.eml", "a%00.eml", "x" * 4000, "a\\b"])
    @pytest.mark.parametrize("page", ["storage", "message", "message/html", "message/raw"])
    def test_nothing_leads_out_of_it(self, operator, robin, page, path):
        robin.client.asked.clear()
        r = operator._request("GET", f"/app/mail/{page}?path=/north.example/{path}")

        assert r.status_code in (400, 404, 422)
        assert not any(".." in target for _, target in robin.client.asked)


class TestTheLog:
    def test_what_is_left_out_is_said_in_the_reader_s_language(self):
        with translation.override("de"):
            gaps = [parsing.gap(clock.now(), "1130-120000000")]
            page = render_to_string("portal/mail/lines.html", {"entries": gaps})
        assert "mehr geschrieben, als gezeigt werden kann" in page

    @pytest.mark.parametrize("word", ["a|b", "(", "[x", "a.*b", "\\d", "%25", "<b>"])
    def test_a_text_is_a_text(self, operator, robin, word):
        from urllib.parse import quote, unquote

        robin.seed.note("ERROR", "smtp.EmailDelivery", f"here {unquote(word)} there")
        search = quote(f"here {unquote(word)} t", safe="")
        page = operator.get(f"/app/mail/logs?search={search}").text

        assert "1 line matches" in page

    def test_levels_and_times(self, operator, robin):
        page = operator.get("/app/mail/logs?level=ERROR").text

        assert set(re.findall(r'<span class="badge \w*">(\w+)</span>', page)) == {"ERROR"}
        none = operator.get("/app/mail/logs?since=2020-01-01T00:00&until=2020-01-02T00:00").text
        assert "No line matches" in none

    def test_the_live_tail_asks_by_itself_and_stops(self, operator, robin):
        page = operator.get("/app/mail/logs?live=1").text
        part = operator._request("GET", "/app/mail/logs?live=1", headers={"HX-Request": "true"})

        assert 'hx-trigger="every 4s"' in page
        assert "<html" not in part.text
        assert 'hx-trigger="every 4s"' not in operator.get("/app/mail/logs").text

    def test_no_password_is_in_it_or_in_its_file(self, operator, robin):
        robin.seed.note("INFO", "smtp.Connection", "<< AUTH PLAIN AHRlc3QAc2VjcmV0")
        page = operator.get("/app/mail/logs?search=AUTH").text
        file = operator.get("/app/mail/logs/export?search=AUTH").text

        for text in (page, file):
            assert "AUTH PLAIN" in text
            assert "AHRlc3QAc2VjcmV0" not in text
        assert AuditEvent.objects.filter(action="robin.log_exported").count() == 1


class TestAlerts:
    def test_an_operator_sets_them_and_who_looks_does_not(self, enter, robin):
        fields = {**THRESHOLDS, "emails": "ops@robin.example", "dead_on": "on"}
        browser, looker = enter(), enter("ROLE_READONLY")
        saved = browser.post("/app/mail/alerts", **fields)
        page = browser.get("/app/mail/alerts").text
        refused = looker.post("/app/mail/alerts", **fields)

        assert saved.status_code == 302
        assert "ops@robin.example" in page
        assert re.search(r'name="dead"[^>]*value="3"|value="3"[^>]*name="dead"', page)
        assert refused.status_code == 403

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("bounce", "101"),
            ("dead", "0"),
            ("oldest", "x"),
            ("emails", "nobody"),
            ("emails", f"{'a' * 100}@{'b' * 60}.{'c' * 60}.{'d' * 60}.com"),
            ("growth", ""),
        ],
    )
    def test_what_is_wrong_is_reported(self, operator, field, value):
        fields = {**THRESHOLDS, "emails": "", field: value}
        page = operator.post("/app/mail/alerts", **fields).text

        assert "Nothing was changed yet" in page


class TestALongQueue:
    """Of parts of a thousand, which are not all read yet."""

    @pytest.fixture
    def long(self, robin, settings):
        from robin.standin.queue import Envelope

        for n in range(2_400):
            rcpt = f"a{n}@d{n % 300}.example"
            robin.seed.queue.enqueue("ESMTP", [Envelope("x@y.example", [rcpt])])
        return robin

    def test_pages_of_destinations_and_of_items(self, operator, long):
        wait_until(lambda: "are known so far" not in operator.get("/app/mail/items").text)
        page = operator.get("/app/mail-queue?page=2").text
        last = operator.get("/app/mail/items?page=50").text

        assert "26 to 50 of 303" in page
        assert "2,451 to 2,500 of 2,520" in last
        one = operator.get("/app/mail-queue?to=d299.").text
        assert "1 to 1 of 1." in one

    def test_what_is_not_read_yet_is_reported(self, operator, long, monkeypatch):
        monkeypatch.setattr(scan.Scanner, "_overdue", only_the_first(scan.Scanner._overdue))
        page = operator.get("/app/mail/items").text
        last = operator.get("/app/mail/items?page=50").text

        assert "1,000 of 2,520 items are known so far" in page
        assert "has not been read yet" in last
        assert "The queue is empty" not in last


def only_the_first(overdue):
    def wrapped(self, facts):
        name, wait = overdue(self, facts)
        return (name, wait) if name in (None, *scan.FIRST) else (None, 1.0)

    return wrapped
