"""The desk of staff: finding a customer by anything, acts with a reason and an end, seeing as."""

from __future__ import annotations

import csv
import io
import re
from datetime import timedelta
from html import unescape
from uuid import UUID, uuid4

import pytest
import time_machine
from django.apps import apps
from django.contrib.auth.models import Group
from django.core import mail
from django.core.cache import cache
from django.db import connection, transaction
from django.db.models import UUIDField
from django.utils import timezone

from accounts import roles, services
from accounts.models import (
    ApiKey,
    AuditEvent,
    LogExport,
    Membership,
    User,
    Workspace,
    WorkspaceDomain,
)
from accounts.tests.shapes import refusal
from detection.jobs import store
from detection.jobs.judging import Item
from detection.models import Job
from gateway_project import tasks
from gateway_project.core import clock
from gateway_project.staff import actions, customers
from gateway_project.tests.test_admin import signed_in
from gateway_project.tests.test_staff_admin import log_rows, row_of
from portal.models import Announcement, IncidentUpdate, StaffAct, StaffNote
from portal.tests import furnished
from webhooks import services as webhooks
from webhooks.models import Webhook

HTML = {"Accept": "text/html"}


def staff_of(*names):
    user = User.objects.create_user(f"{'-'.join(names)}@gateway.example", "x", is_staff=True)
    for name in names:
        user.groups.add(Group.objects.get_or_create(name=name)[0])
    return user


@pytest.fixture
def desk(gateway):
    """`desk("support")`: a browser of a member of staff with that role."""

    def enter(*names):
        return signed_in(gateway, staff_of(*names))

    return enter


@pytest.fixture
def operator(desk):
    return desk("operator")


def page(browser, acme):
    return browser.get(f"/admin/desk/{acme.pk}/")


def act(browser, workspace, name, **fields):
    fields.setdefault("reason", "they asked for it by mail")
    return browser.post(f"/admin/desk/{workspace.pk}/{name}/", **fields)


def test_each_table_is_a_file_too(operator, acme, globex, alice):
    found = furnished.furnish(acme, "=1+1")
    Webhook.objects.filter(pk=found.webhook_id).update(failing_since=clock.now())
    Membership.objects.create(user=alice, workspace=globex)
    seen = set()
    for path in (f"{acme.pk}/", "board/", "plans/", f"?q={alice.email}", "background/"):
        text = operator.get(f"/admin/desk/{path}").text.replace("&amp;", "&")
        for link in re.findall(r'href="(\?[^"]*csv=[\w-]+)"', text):
            r = operator.get(f"/admin/desk/{path.partition('?')[0]}{link}")
            header, *rows = csv.reader(io.StringIO(r.text))

            assert r.headers["content-type"].startswith("text/csv"), link
            assert all(len(row) == len(header) for row in rows), link
            assert not any(cell.startswith("=") for row in rows for cell in row), link
            seen.add(link.rpartition("=")[2])

    assert seen >= {
        *("people", "keys", "errors", "work", "trail"),
        *("sign-ups", "waiting", "failing", "customers", "background"),
    }


class TestFinding:
    def words(self, acme, alice, key):
        hook, _ = webhooks.register(
            acme.pk, "https://198.41.0.4/hook", ["quota.80"], actor=services.Actor("test")
        )
        delivery = webhooks.test(hook, "webhook.test")
        request_id = clock.new_id()
        log_rows(row_of(key, request_id=request_id))
        order = store.Order(Job.Kind.BATCH, acme.pk, key.row.pk, str(clock.new_id()))
        job, _ = store.create(order, [Item("1", None, {"code": "x", "message": "x"})])
        WorkspaceDomain.objects.create(workspace=acme, domain="acme.example", token="x")
        event = AuditEvent.objects.filter(workspace_id=acme.pk).first()
        export = LogExport.objects.create(workspace=acme, asked_by=alice.email, link="/")
        domain = WorkspaceDomain.objects.get()
        return {
            "address": alice.email,
            "address in capitals": alice.email.upper(),
            "beginning of an address": "alice@",
            "slug": "acme",
            "beginning of a slug": "acm",
            "name": "ACME GmbH",
            "beginning of a name": "acme g",
            "name that it had": "Acme Ltd.",
            "domain": "acme.example",
            "domain with @": "@acme.example",
            "whole key": str(key),
            "key's prefix": key.row.prefix,
            "key as shown": f"{key.row.prefix}…{key.row.last4}",
            "workspace id": str(acme.pk),
            "person's id": str(alice.pk),
            "key's id": str(key.row.pk),
            "request": str(request_id),
            "webhook": str(hook.pk),
            "delivery": str(delivery.pk),
            "event": str(delivery.event_id),
            "job": str(job.pk),
            "act": str(event.pk),
            "file of the log": str(export.pk),
            "domain's id": str(domain.pk),
            "blanks around it": f"  {acme.pk}\n",
        }

    def test_whatever_a_customer_names_leads_to_them(self, gateway, acme, globex, alice, make_key):
        Workspace.objects.filter(pk=acme.pk).update(name="Acme GmbH", slug="acme-ltd")
        acme.refresh_from_db()
        for what, word in self.words(acme, alice, make_key()).items():
            found = customers.find(word)

            assert [one.workspace.pk for one in found] == [acme.pk], what

    @pytest.mark.parametrize(
        "word", ["", " ", "%", "_", "\x00", "nobody@x.example", "gw_", str(UUID(int=7)), "x" * 5000]
    )
    def test_what_names_nobody_finds_nobody(self, gateway, acme, word):
        assert customers.find(word) == []

    @pytest.mark.needs_postgresql
    def test_the_beginning_of_a_name_has_an_index(self, acme):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")

            assert (
                "workspace_named"
                in Workspace.objects.order_by().filter(name__istartswith="a").explain()
            )

    def test_every_id_of_something_that_a_workspace_has_is_looked_for(self):
        ids = {
            model._meta.label
            for model in apps.get_models()
            if isinstance(model._meta.pk, UUIDField)
            and any(one.related_model is Workspace for one in model._meta.get_fields())
        }
        found = {model._meta.label for model in customers.OTHERS}
        found |= {model._meta.label for model in (ApiKey, AuditEvent, Job, User, Webhook)}

        assert ids - found == {
            # No customer is shown their ids.
            *("accounts.OutboxEvent", "accounts.Parked", "detection.PolicyVersion"),
            *("portal.StaffAct", "portal.StaffNote"),
        }

    def test_one_is_shown_at_once(self, operator, acme, alice):
        r = operator._request("GET", f"/admin/desk/?q={alice.email}")

        assert r.status_code == 302
        assert r.headers["location"].startswith(f"/admin/desk/{acme.pk}/?found=alice")

    def test_of_several_one_is_chosen(self, operator, acme, alice, globex):
        Membership.objects.create(user=alice, workspace=globex)

        text = operator.get(f"/admin/desk/?q={alice.email}").text

        assert f"/admin/desk/{acme.pk}/" in text
        assert f"/admin/desk/{globex.pk}/" in text

    def test_nobody_found_says_what_works(self, operator, acme):
        text = operator.get("/admin/desk/?q=<script>alert(1)</script>").text

        assert "Nobody is found" in text
        assert "<script>alert" not in text

    def test_a_whole_key_is_on_no_page(self, operator, acme, make_key):
        key = make_key()

        text = operator.get(f"/admin/desk/?q={key}").text

        assert key.row.prefix in text
        assert str(key) not in text


class TestPage:
    def test_it_has_all_there_is_to_know(self, operator, acme, alice, bob, make_key):
        key = make_key(name="production")
        log_rows(row_of(key, http_status=422))
        StaffNote.objects.create(workspace=acme, text="Likes <b>tea</b>.", written_by="x")

        text = page(operator, acme).text

        for words in (alice.email, bob.email, "production", "422", "Likes &lt;b&gt;tea&lt;/b&gt;"):
            assert words in text
        assert "key.created" in text

    def test_the_id_of_a_request_leads_to_its_reason(self, operator, acme, make_key):
        request_id = clock.new_id()
        log_rows(row_of(make_key(), request_id=request_id, http_status=422))

        text = operator.get(f"/admin/desk/?q={request_id}").text

        asked = text.partition("The request</h2>")[2].partition("</section>")[0]
        assert "422" in asked
        assert "/v1/detect" in asked

    def test_a_request_of_another_customer_is_not_shown(self, operator, acme, globex, make_key):
        request_id = clock.new_id()
        log_rows(row_of(make_key(globex), request_id=request_id))

        text = operator.get(f"/admin/desk/{acme.pk}/?request={request_id}").text

        assert "The request</h2>" not in text

    def test_a_missing_customer_is_a_404(self, operator):
        assert refusal(operator.get(f"/admin/desk/{uuid4()}/")) == (404, "not_found")

    def test_a_note_is_for_staff_alone(self, operator, acme):
        operator.post(f"/admin/desk/{acme.pk}/", text="x")  # reads the token
        r = note(operator, acme, "Called them.")

        assert r.status_code == 302
        assert "Called them." in page(operator, acme).text
        assert not AuditEvent.objects.filter(details__icontains="Called").exists()


def note(browser, workspace, text):
    token = re.search(r'csrfmiddlewaretoken" value="([^"]+)', page(browser, workspace).text)[1]
    return browser._request(
        "POST",
        f"/admin/desk/{workspace.pk}/note/",
        data={"csrfmiddlewaretoken": token, "text": text},
    )


def post(browser, workspace, path, **fields):
    token = re.search(r'csrfmiddlewaretoken" value="([^"]+)', page(browser, workspace).text)[1]
    return browser._request(
        "POST",
        f"/admin/desk/{workspace.pk}/{path}/",
        data={"csrfmiddlewaretoken": token, **fields},
    )


class TestWhoMayWhat:
    @pytest.mark.parametrize("role", [roles.SUPPORT, roles.FINANCE, roles.OPERATOR])
    @pytest.mark.parametrize("name", sorted(actions.ACTIONS))
    def test_an_act_is_for_the_roles_that_have_its_right(self, desk, acme, role, name):
        browser = desk(role)
        allowed = actions.ACTIONS[name].right in roles.RIGHTS[role]

        r = browser.get(f"/admin/desk/{acme.pk}/{name}/")

        assert r.status_code == (200 if allowed else 403)
        if actions.ACTIONS[name].applies(acme):
            assert (f"/{name}/" in page(browser, acme).text) == allowed

    def test_staff_without_a_role_see_nothing_here(self, gateway, acme):
        browser = signed_in(gateway, staff_of())

        for path in ("", "board/", f"{acme.pk}/", f"{acme.pk}/suspend/"):
            assert refusal(browser.get(f"/admin/desk/{path}")) == (403, "permission_denied"), path

    def test_a_group_of_another_name_is_no_role(self, desk, acme):
        assert refusal(page(desk("owners"), acme)) == (403, "permission_denied")

    def test_customers_are_led_away(self, gateway, acme, alice):
        r = signed_in(gateway, alice)._request("GET", f"/admin/desk/{acme.pk}/")

        assert r.status_code == 302
        assert r.headers["location"].startswith("/admin/login/")

    def test_without_a_second_factor_they_are_led_to_one(self, operator, acme, settings):
        settings.STAFF_TWO_FACTORS = True

        r = operator._request("GET", f"/admin/desk/{acme.pk}/")

        assert (r.status_code, r.headers["location"]) == (302, "/accounts/2fa/")

    def test_an_act_wants_a_fresh_sign_in(self, operator, acme):
        with time_machine.travel(timezone.now() + timedelta(minutes=16), tick=True):
            r = act(operator, acme, "suspend")

        assert r.status_code == 302
        assert "/reauthenticate/" in r.headers["location"]
        acme.refresh_from_db()
        assert acme.suspended_at is None

    @pytest.mark.parametrize("role", [roles.SUPPORT, roles.FINANCE, roles.OPERATOR])
    @pytest.mark.parametrize("table", ["incident", "announcement"])
    def test_who_runs_the_gateway_says_what_goes_on(self, desk, role, table):
        browser, path = desk(role), f"/admin/portal/{table}/"
        allowed = "run" in roles.RIGHTS[role]

        statuses = {browser.get(path).status_code, browser.get(f"{path}add/").status_code}

        assert statuses == ({200} if allowed else {403})
        assert (f'href="{path}"' in browser.get("/admin/").text) == allowed

    def test_an_operator_writes_an_incident_and_what_follows(self, operator):
        form = {
            "title": "Slow", "impact": "minor", "components": "[]",
            "started_at_0": "2026-11-30", "started_at_1": "10:00:00",
            "updates-TOTAL_FORMS": "1", "updates-INITIAL_FORMS": "0",
            "updates-0-state": "investigating", "updates-0-text": "We look.",
        }  # fmt: skip
        sent = operator.post("/admin/portal/incident/add/", **form)

        assert sent.status_code == 302, re.findall("errorlist.*?</ul>", sent.text)
        assert IncidentUpdate.objects.get().written_by == "operator@gateway.example"

    def test_superusers_are_operators(self, gateway, acme):
        root = User.objects.create_superuser("root@gateway.example", "x")

        assert acme.slug in page(signed_in(gateway, root), acme).text


class TestActs:
    def test_each_asks_a_reason(self, operator, acme):
        for name in actions.ACTIONS:
            r = act(operator, acme, name, reason=" ")

            assert r.status_code == 200, name
            assert "errorlist" in r.text
        assert not StaffAct.objects.exists()

    def test_suspending_stops_the_keys_and_the_customer_reads_why(
        self, gateway, operator, acme, acme_key, alice
    ):
        r = act(operator, acme, "suspend", reason="The card was refused twice.")

        assert r.status_code == 302
        assert gateway.get("/v1/limits", key=acme_key).json()["code"] == "workspace_suspended"
        line = AuditEvent.objects.get(workspace_id=acme.pk, action="staff.suspend")
        assert line.details["reason"] == "The card was refused twice."
        assert line.actor == "operator@gateway.example"
        assert "The card was refused twice." in signed_in(gateway, alice).get("/app/").text

    def test_a_suspension_with_an_end_ends(self, gateway, operator, acme, acme_key):
        until = timezone.now() + timedelta(hours=2)
        act(operator, acme, "suspend", until=f"{until:%Y-%m-%dT%H:%M}")

        assert tasks.undo_acts() == 0
        with time_machine.travel(until + timedelta(minutes=1), tick=True):
            assert tasks.undo_acts() == 1
            assert tasks.undo_acts() == 0

        acme.refresh_from_db()
        assert acme.suspended_at is None
        assert StaffAct.objects.get().undone_at is not None

    def test_what_is_past_is_no_end(self, operator, acme):
        r = act(operator, acme, "suspend", until="2020-01-01T00:00")

        assert "This is past" in r.text

    def test_reinstating_by_hand_leaves_nothing_to_undo(self, operator, acme):
        until = timezone.now() + timedelta(hours=2)
        act(operator, acme, "suspend", until=f"{until:%Y-%m-%dT%H:%M}")
        act(operator, acme, "reinstate")
        act(operator, acme, "suspend")

        with time_machine.travel(until + timedelta(minutes=1), tick=True):
            assert tasks.undo_acts() == 0
        acme.refresh_from_db()
        assert acme.suspended_at is not None

    def test_limits_count_until_their_end_and_then_as_before(self, operator, acme):
        until = timezone.now() + timedelta(days=1)
        act(operator, acme, "raise_limits", per_day="123456", until=f"{until:%Y-%m-%dT%H:%M}")
        acme.refresh_from_db()
        assert acme.day_quota == 123_456

        with time_machine.travel(until + timedelta(minutes=1), tick=True):
            tasks.undo_acts()
        acme.refresh_from_db()
        assert acme.rate_limit_per_day is None

    def test_limits_that_somebody_changed_meanwhile_stay(self, operator, acme):
        until = timezone.now() + timedelta(days=1)
        act(operator, acme, "raise_limits", per_day="123456", until=f"{until:%Y-%m-%dT%H:%M}")
        act(operator, acme, "raise_limits", per_day="777777")

        with time_machine.travel(until + timedelta(minutes=1), tick=True):
            assert tasks.undo_acts() == 1
        acme.refresh_from_db()
        assert acme.rate_limit_per_day == 777_777

    def test_a_key_of_another_customer_is_none_of_theirs(self, operator, acme, globex, make_key):
        key = make_key(globex)

        r = act(operator, acme, "revoke_key", key=str(key.row.pk))

        assert r.status_code == 200
        key.row.refresh_from_db()
        assert key.row.revoked_at is None

    def test_a_key_is_revoked(self, gateway, operator, acme, make_key):
        key = make_key()

        act(operator, acme, "revoke_key", key=str(key.row.pk))

        assert refusal(gateway.get("/v1/limits", key=key)) == (401, "invalid_api_key")

    def test_a_rotated_key_is_given_days(self, operator, acme, make_key):
        key = make_key()
        services.rotate_key(key.row, grace_seconds=60, actor=services.Actor("test"))

        act(operator, acme, "extend_key", key=str(key.row.pk), days="2")

        key.row.refresh_from_db()
        assert key.row.grace_until > timezone.now() + timedelta(days=1)

    def test_a_key_without_an_end_is_reported(self, operator, acme, make_key):
        r = act(operator, acme, "extend_key", key=str(make_key().row.pk), days="2")

        assert "This key has no end" in r.text

    def test_sessions_are_ended(self, gateway, operator, acme, alice):
        browser = signed_in(gateway, alice)
        browser.get("/app/")

        r = act(operator, acme, "end_sessions", person=str(alice.pk))

        assert r.status_code == 302
        assert StaffAct.objects.get().target == alice.email

    def test_the_confirmation_is_sent_again(self, gateway, operator):
        person = services.register(
            "dana@initech.example", "correct horse battery", "", actor=services.Actor("test")
        )
        mail.outbox.clear()

        r = act(operator, person.workspace, "resend_confirmation", person=str(person.user.pk))

        assert r.status_code == 302
        assert [m.to for m in mail.outbox] == [["dana@initech.example"]]

    def test_doing_it_twice_is_reported(self, operator, acme):
        act(operator, acme, "suspend")

        r = act(operator, acme, "suspend")

        assert "suspended already" in r.text
        assert StaffAct.objects.count() == 1

    def test_a_form_that_is_sent_twice_acts_once(self, operator, acme, make_key):
        key = make_key(expires_at=timezone.now() + timedelta(days=5)).row
        form = {"key": str(key.pk), "days": "1", "once": str(uuid4())}

        answers = [act(operator, acme, "extend_key", **form) for _ in range(2)]

        assert [r.status_code for r in answers] == [302, 302]
        assert type(key).objects.get(pk=key.pk).expires_at == key.expires_at + timedelta(days=1)
        assert StaffAct.objects.count() == 1

    def test_an_act_that_fails_leaves_no_line(self, operator, acme, monkeypatch):
        def broken(**fields):
            raise RuntimeError

        monkeypatch.setattr(StaffAct.objects, "create", broken)

        r = act(operator, acme, "suspend")

        acme.refresh_from_db()
        assert r.status_code == 500
        assert acme.suspended_at is None


class TestSeeingAs:
    def see(self, browser, acme, reason="They ask why a call was flagged"):
        return post(browser, acme, "see", reason=reason)

    def test_the_portal_is_theirs_with_a_banner_and_a_line_in_their_audit(self, operator, acme):
        r = self.see(operator, acme)

        assert (r.status_code, r.headers["location"]) == (302, "/app/")
        text = operator.get("/app/keys").text
        assert "You see <b>Acme</b> as its members do" in text
        line = AuditEvent.objects.get(workspace_id=acme.pk, action="staff.saw")
        assert line.details == {"reason": "They ask why a call was flagged", "minutes": 15}

    def test_nothing_can_be_done_there(self, operator, acme, make_key):
        key = make_key()
        self.see(operator, acme)
        token = re.search(r'csrfmiddlewaretoken" value="([^"]+)', operator.get("/app/keys").text)[1]
        form = {"csrfmiddlewaretoken": token, "name": key.row.name, "workspace": str(acme.pk)}

        for path in (f"/app/keys/{key.row.pk}/revoke", "/app/keys", "/app/playground/key"):
            r = operator._request("POST", path, data=form)
            assert r.status_code == 403, path
        key.row.refresh_from_db()
        assert key.row.revoked_at is None

    def test_no_table_of_a_page_leaves_as_a_file(self, desk, gateway, operator, acme, alice):
        """Neither by a link nor by its address; `?csv=` is asked of each page that has one."""
        files = re.compile(r'href="\?([^"]*\bcsv=[^"]+)"')
        paths = list(furnished.pages(furnished.furnish(acme)))
        owner, asked = signed_in(gateway, alice), 0
        self.see(operator, acme)
        for path in paths:
            for query in files.findall(owner.get(path).text):
                asked += 1
                answer = operator.get(f"{path}?{unescape(query)}")
                assert refusal(answer) == (403, "permission_denied"), query
            assert not files.findall(operator.get(path).text), path
        assert asked > 15

    @pytest.mark.parametrize("path", ["/app/requests/export", "/app/keys/export", "/app/audit"])
    def test_no_file_leaves_and_the_trail_is_theirs(self, operator, acme, path):
        self.see(operator, acme)

        assert refusal(operator.get(path)) == (403, "permission_denied")

    def test_it_ends_by_itself(self, operator, acme):
        self.see(operator, acme)

        with time_machine.travel(timezone.now() + timedelta(minutes=16), tick=True):
            text = operator.get("/app/keys").text

        assert "as its members do" not in text
        assert "Acme" not in text

    def test_it_ends_with_the_role(self, operator, acme):
        self.see(operator, acme)
        User.objects.get(email="operator@gateway.example").groups.clear()

        assert "Acme" not in operator.get("/app/keys").text

    def test_it_is_stopped(self, operator, acme):
        self.see(operator, acme)
        text = operator.get("/app/").text
        token = re.search(r'csrfmiddlewaretoken" value="([^"]+)', text)[1]

        r = operator._request(
            "POST", "/admin/desk/stop-seeing/", data={"csrfmiddlewaretoken": token}
        )

        assert r.headers["location"] == f"/admin/desk/{acme.pk}/"
        assert "as its members do" not in operator.get("/app/").text

    def test_it_needs_a_reason_and_the_right(self, desk, acme):
        assert (
            self.see(desk("support"), acme, reason="x")
            .headers["location"]
            .endswith(f"/desk/{acme.pk}/")
        )
        assert self.see(desk("finance"), acme).status_code == 403
        assert not AuditEvent.objects.filter(action="staff.saw").exists()

    def test_who_is_no_staff_any_more_sees_nothing(self, gateway, acme):
        user = staff_of("support")
        browser = signed_in(gateway, user)
        self.see(browser, acme)
        User.objects.filter(pk=user.pk).update(is_staff=False)

        assert "as its members do" not in browser.get("/app/").text


class TestAnnouncements:
    def test_they_stand_from_their_begin_to_their_end(self, gateway, acme, alice):
        now = timezone.now()
        for text, begins, ends in (("now", -1, 1), ("over", -2, -1), ("ahead", 1, 2)):
            Announcement.objects.create(
                text=f"It is {text}.",
                starts_at=now + timedelta(hours=begins),
                ends_at=now + timedelta(hours=ends),
            )

        text = signed_in(gateway, alice).get("/app/").text

        assert "It is now." in text
        assert "It is over." not in text
        assert "It is ahead." not in text

    def test_one_for_a_plan_is_for_its_workspaces_alone(self, gateway, acme, alice):
        Announcement.objects.create(
            text="For the team.", plan_id="team", ends_at=timezone.now() + timedelta(hours=1)
        )

        assert "For the team." not in signed_in(gateway, alice).get("/app/").text


class TestBoard:
    @pytest.fixture(autouse=True)
    def _anew(self):
        cache.delete("staff:board")

    def test_it_says_how_the_business_does(self, operator, acme, make_key):
        key = make_key()
        log_rows(*[row_of(key) for _ in range(3)])

        text = operator.get("/admin/desk/board/").text

        for words in ("With a first verdict", "To review", "Failing webhooks", "Sign-ups by day"):
            assert words in text

    def test_who_is_near_the_limit_is_named(self, operator, acme, make_key):
        acme.rate_limit_per_day = 4
        acme.save()
        log_rows(*[row_of(make_key()) for _ in range(4)])

        text = operator.get("/admin/desk/board/").text

        assert "100% of 4 a day" in text
