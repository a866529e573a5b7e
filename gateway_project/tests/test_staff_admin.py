"""The admin as staff use it: who may do what, how it asks first, what it never shows or counts."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape
from itertools import product
from uuid import UUID, uuid4

import pytest
from django.conf import settings
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts import moderation, services
from accounts.admin import actions, lists
from accounts.admin.keys import ApiKeyAdmin
from accounts.admin.lists import BoundedPaginator
from accounts.models import (
    ApiKey,
    AuditEvent,
    Membership,
    Plan,
    UsageLog,
    UsageRollup,
    User,
    Workspace,
    new_id,
)
from accounts.tests.shapes import refusal
from accounts.usage.log import write
from accounts.usage.rows import Batch
from detection.engines import registry
from gateway_project.core.upstream import breaker
from gateway_project.tests.served import wait_until
from gateway_project.tests.test_admin import PAGES, SHOWN_KEY, Browser, signed_in

MODELS = (User, Workspace, Plan, ApiKey, UsageLog, UsageRollup, AuditEvent)
NAMES = [model._meta.model_name for model in MODELS]
NO_INLINE = re.compile(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", re.I)


def viewer_of(gateway, *models):
    user = User.objects.create_user("viewer@gateway.example", "x", is_staff=True)
    for model in models:
        kind = ContentType.objects.get_for_model(model)
        for verb in ("view", "change"):
            permission, _ = Permission.objects.get_or_create(
                content_type=kind, codename=f"{verb}_{model._meta.model_name}"
            )
            user.user_permissions.add(permission)
    return signed_in(gateway, user)


@pytest.fixture
def viewer(gateway):
    """A member of staff whose group may view and even change: only superusers act all the same."""
    return viewer_of(gateway, *MODELS)


def row_of(key, **fields):
    values = {"endpoint": "/v1/detect", "http_status": 200, "flagged": False, "at": timezone.now()}
    values |= fields
    return (
        values.get("request_id") or new_id(),
        key.row.pk,
        key.row.workspace_id,
        values["endpoint"],
        values["http_status"],
        "",
        10,
        12.5,
        1.0,
        "complete",
        "engine",
        "flag" if values["flagged"] else "allow",
        values["flagged"],
        0.9,
        False,
        values["at"],
    )


def log_rows(*rows):
    write([Batch(uuid4(), list(rows), {}).plain()])


def listed(r):
    """How many rows a list shows."""
    assert r.status_code == 200
    return (
        len(re.findall(r'<(?:td|th) class="field-\w+[^"]*">', r.text))
        and len(
            re.findall(r"<tr>", r.text.partition('id="result_list"')[2].partition("</table>")[0])
        )
        - 1
    )


# -- Acts -----------------------------------------------------------------------------------------

ACTS = [
    # model, act, the form's fields, what the audit trail says
    ("user", "confirm_email", {}, "user.email_confirmed"),
    ("user", "suspend", {}, "user.suspended"),
    ("user", "reinstate", {}, "user.reinstated"),
    ("workspace", "suspend", {}, "workspace.suspended"),
    ("workspace", "reinstate", {}, "workspace.reinstated"),
    ("workspace", "change_plan", {"plan": "team", "fit_keys": "on"}, "workspace.changed"),
    ("apikey", "revoke", {}, "key.revoked"),
    ("apikey", "change_limits", {"per_minute": "7", "per_day": ""}, "key.changed"),
]
each_action = pytest.mark.parametrize(("name", "act", "fields", "expected"), ACTS)


@pytest.fixture
def target(request, acme, acme_key, bob, act, name):
    """Whom the act is done to, in a state where there is something to do."""
    if act == "confirm_email":
        User.objects.filter(pk=bob.pk).update(email_confirmed_at=None)
    if act == "reinstate":
        User.objects.filter(pk=bob.pk).update(is_active=False)
        Workspace.objects.update(suspended_at=timezone.now())
    return {"user": bob, "workspace": acme, "apikey": acme_key.row}[name]


def begin(browser, name, act, *rows, **more):
    chosen = {"action": act, "_selected_action": [str(row.pk) for row in rows]}
    return browser.post(f"/admin/accounts/{name}/", **chosen, **more)


class TestActs:
    @each_action
    def test_it_asks_first_and_then_does_it_audited(
        self, root, target, name, act, fields, expected
    ):
        page = root.get(reverse(f"admin:accounts_{name}_change", args=[target.pk])).text
        offered = set(re.findall(r'<button type="submit" name="action" value="(\w+)"', page))
        assert act in offered
        assert not {"suspend", "reinstate"} <= offered  # only what applies

        asked = begin(root, name, act, target)

        assert asked.status_code == 200
        assert str(target) in unescape(asked.text)
        assert not AuditEvent.objects.filter(action=expected).exists()

        done = begin(root, name, act, target, is_sure="yes", **fields)

        assert (done.status_code, done.headers["location"]) == (302, f"/admin/accounts/{name}/")
        event = AuditEvent.objects.get(action=expected)
        assert (event.actor, event.client_ip) == ("root@gateway.example", "127.0.0.1")
        assert event.target == str(target.pk)
        assert event.request_id

    @each_action
    def test_who_may_only_look_is_not_offered_it_and_not_obeyed(
        self, viewer, target, name, act, fields, expected
    ):
        own = reverse(f"admin:accounts_{name}_change", args=[target.pk])
        for path in (own, f"/admin/accounts/{name}/"):
            page = viewer.get(path)
            assert page.status_code == 200
            assert f'value="{act}"' not in page.text

        begin(viewer, name, act, target, is_sure="yes", **fields)

        assert not AuditEvent.objects.exclude(action="key.created").exists()

    @each_action
    def test_nobody_else_gets_there(self, gateway, alice, target, name, act, fields, expected):
        for browser in (Browser(gateway), signed_in(gateway, alice)):
            r = begin(browser, name, act, target, is_sure="yes", **fields)

            assert r.status_code in (302, 403)
            assert not AuditEvent.objects.exclude(action="key.created").exists()

    def test_a_form_that_is_wrong_asks_again(self, root, acme_key):
        for fields in ({"per_minute": "0"}, {"per_minute": "", "per_day": ""}, {"per_day": "x"}):
            r = begin(root, "apikey", "change_limits", acme_key.row, is_sure="yes", **fields)

            assert r.status_code == 200
            assert "errorlist" in r.text
        assert not AuditEvent.objects.filter(action="key.changed").exists()

    def test_limits_beyond_the_plan_count_from_the_next_call_on(self, root, gateway, acme_key):
        assert gateway.get("/v1/limits", key=acme_key).json()["policies"][0]["limit"] == 60

        begin(root, "apikey", "change_limits", acme_key.row, is_sure="yes", per_minute="700")

        assert gateway.get("/v1/limits", key=acme_key).json()["policies"][0]["limit"] == 700

    def test_what_is_done_already_is_reported(self, root, acme_key):
        begin(root, "apikey", "revoke", acme_key.row, is_sure="yes")
        begin(root, "apikey", "revoke", acme_key.row, is_sure="yes")

        assert "done for 0. One stayed as it was." in root.get("/admin/accounts/apikey/").text
        assert AuditEvent.objects.filter(action="key.revoked").count() == 1

    def test_a_refusal_keeps_no_other_row_from_it(self, root, bob):
        me = User.objects.get(email="root@gateway.example")

        begin(root, "user", "suspend", me, bob, is_sure="yes")

        page = root.get("/admin/accounts/user/").text
        assert "This is the last active superuser" in page
        assert "done for 1. One stayed" in page
        bob.refresh_from_db()
        assert not bob.is_active

    @pytest.mark.slow
    def test_a_suspended_workspace_is_refused_by_every_worker(self, serve, acme, acme_key):
        served = serve(WORKERS="2")
        # A connection each, so that the kernel spreads them: both workers know the key now.
        assert {served.limits(acme_key).status_code for _ in range(20)} == {200}

        moderation.suspend_workspace(acme, actor=services.Actor("test"))

        wait_until(
            lambda: {served.limits(acme_key).status_code for _ in range(20)} == {403}, seconds=5
        )

    def test_too_many_rows_at_once_are_refused(self, root, make_key, monkeypatch):
        monkeypatch.setattr(actions, "ROWS_MAX", 2)
        rows = [make_key().row for _ in range(3)]

        r = begin(root, "apikey", "revoke", *rows, is_sure="yes")

        assert r.status_code == 302
        assert "At most 2 rows at once" in root.get("/admin/accounts/apikey/").text
        assert not ApiKey.objects.exclude(revoked_at=None).exists()


class TestForms:
    def test_a_colleague_is_added_and_can_sign_in(self, root, gateway):
        r = root.post(
            "/admin/accounts/user/add/",
            email="New@Gateway.example",
            first_name="New",
            is_staff="on",
            password="a good long password",
        )

        assert r.status_code == 302
        fresh = Browser(gateway)
        assert fresh.sign_in("new@gateway.example").headers["location"] == "/admin/"
        assert AuditEvent.objects.get(action="user.created").actor == "root@gateway.example"

    @pytest.mark.parametrize("password", ["short", "12345678901234", ""])
    def test_with_a_password_that_holds(self, root, password):
        r = root.post("/admin/accounts/user/add/", email="new@gateway.example", password=password)

        assert r.status_code == 200
        assert "errorlist" in r.text
        assert not User.objects.filter(email="new@gateway.example").exists()

    def test_with_an_address_that_is_kept(self, root):
        """On PostgreSQL: SQLite has no lengths."""
        email = f"{'a' * 50}@{'b' * 50}.{'c' * 50}.com"
        r = root.post("/admin/accounts/user/add/", email=email, password="a good long password")

        assert r.status_code == 200
        assert "more than 150 characters" in r.text

    def test_rights_are_audited_with_what_was_before(self, root, bob):
        url = reverse("admin:accounts_user_change", args=[bob.pk])

        assert root.post(url, first_name="Bob", is_staff="on").status_code == 302

        changes = AuditEvent.objects.get(action="user.changed").details["changes"]
        assert changes == {"first_name": ["", "Bob"], "is_staff": [False, True]}

    def test_the_last_superuser_cannot_step_down(self, root):
        me = User.objects.get(email="root@gateway.example")

        r = root.post(reverse("admin:accounts_user_change", args=[me.pk]), is_staff="on")

        assert "This is the last active superuser" in r.text
        me.refresh_from_db()
        assert me.is_superuser

    def test_a_password_set_for_somebody_is_audited(self, root, bob):
        url = reverse("admin:auth_user_password_change", args=[bob.pk])
        new = "another good long one"

        form = {"usable_password": "true", "password1": new, "password2": new}
        r = root.post(url, **form, **{"set-password": "1"})

        assert r.status_code == 302
        bob.refresh_from_db()
        assert bob.check_password(new)
        assert AuditEvent.objects.get(action="user.password_set").target == str(bob.pk)

    def test_a_workspace_counts_from_the_next_call_on(self, root, gateway, acme, acme_key):
        gateway.get("/v1/limits", key=acme_key)
        members = {
            "memberships-TOTAL_FORMS": "2",
            "memberships-INITIAL_FORMS": "2",
        }
        for index, member in enumerate(acme.memberships.order_by("created_at")):
            members[f"memberships-{index}-id"] = str(member.pk)
            members[f"memberships-{index}-workspace"] = str(acme.pk)
        fields = {"slug": "acme", "name": "Acme Inc", "plan": "free", "rate_limit_per_day": "55"}

        r = root.post(
            reverse("admin:accounts_workspace_change", args=[acme.pk]),
            **fields,
            is_confirmed="on",
            **members,
            **{"memberships-1-DELETE": "on"},
        )

        assert r.status_code == 302
        limits = [p["limit"] for p in gateway.get("/v1/limits", key=acme_key).json()["policies"]]
        assert limits[2] == 55
        changes = AuditEvent.objects.get(action="workspace.changed").details["changes"]
        assert changes == {"name": ["Acme", "Acme Inc"], "rate_limit_per_day": [None, 55]}
        assert AuditEvent.objects.get(action="member.removed").workspace == acme
        assert Membership.objects.filter(workspace=acme).count() == 1

    @pytest.mark.parametrize("name", ["user", "workspace", "plan", "apikey"])
    def test_nothing_of_a_customers_is_deleted_here(self, root, acme_key, alice, name):
        model = {"user": User, "workspace": Workspace, "plan": Plan, "apikey": ApiKey}[name]
        row = model.objects.first()

        r = root._request("GET", reverse(f"admin:accounts_{name}_delete", args=[row.pk]))

        assert r.status_code == 403
        assert "delete_selected" not in root.get(f"/admin/accounts/{name}/").text

    @pytest.mark.parametrize("name", ["user", "workspace", "plan", "apikey"])
    def test_who_may_only_look_cannot_save(self, viewer, acme_key, name):
        model = {"user": User, "workspace": Workspace, "plan": Plan, "apikey": ApiKey}[name]
        url = reverse(f"admin:accounts_{name}_change", args=[model.objects.first().pk])

        page = viewer.get(url)

        assert page.status_code == 200
        assert 'name="_save"' not in page.text
        assert viewer.post(url, name="x", first_name="x").status_code == 403
        assert viewer._request("GET", f"/admin/accounts/{name}/add/").status_code == 403

    def test_staff_without_a_right_see_the_first_page_only(self, gateway, acme_key):
        nobody = viewer_of(gateway)

        assert nobody.get("/admin/").status_code == 200
        for name in NAMES:
            r = nobody._request("GET", f"/admin/accounts/{name}/")
            assert refusal(r) == (403, "permission_denied")


# -- What is shown --------------------------------------------------------------------------------


@pytest.fixture
def furnished(gateway, acme, acme_key, globex_key, alice):
    log_rows(row_of(acme_key), row_of(acme_key, flagged=True), row_of(globex_key, http_status=503))
    gateway.delete("/auth/revoke", key=globex_key)
    return [acme_key, globex_key]


def every_page(browser):
    """The path and text of every page that is about a row, a list, or nothing in particular."""
    paths = [*PAGES, "/admin/breakers/", "/admin/auth/group/", "/admin/password_change/"]
    paths += [f"/admin/accounts/{name}/add/" for name in ("user", "workspace", "plan", "apikey")]
    for model in MODELS:
        name = model._meta.model_name
        for row in model.objects.all()[:20]:
            paths += [
                reverse(f"admin:accounts_{name}_{view}", args=[row.pk])
                for view in ("change", "history")
            ]
    paths += [reverse("admin:auth_user_password_change", args=[u.pk]) for u in User.objects.all()]
    for path in paths:
        r = browser.get(path)
        assert r.status_code == 200, path
        yield path, r.text


class TestNoSecretIsShown:
    @pytest.mark.slow
    def test_on_any_page_nor_is_anything_inline(self, root, furnished):
        hashes = list(ApiKey.objects.values_list("key_hash", flat=True))
        passwords = [p.split("$") for p in User.objects.values_list("password", flat=True)]
        sessions = root.cookies[settings.SESSION_COOKIE_NAME]

        for path, text in every_page(root):
            assert not SHOWN_KEY.search(text), path
            for key in furnished:
                assert str(key) not in text, path
            for secret in hashes:
                assert secret not in text, path
            for parts in passwords:  # neither salt nor hash, nor the beginnings that Django shows
                assert not any(part[:6] in text for part in parts[-2:]), path
            assert "key_hash" not in text
            assert not NO_INLINE.search(text), (path, NO_INLINE.search(text))
            assert sessions not in text

    def test_nor_is_one_found_by_guessing_its_beginning(self, root, furnished):
        secret = ApiKey.objects.first()
        lookups = [
            f"apikey/?key_hash__startswith={secret.key_hash[:2]}",
            "user/?password__startswith=argon2",
            f"user/?memberships__workspace__keys__key_hash__startswith={secret.key_hash[:2]}",
            "workspace/?keys__key_hash__contains=a",
            "usagelog/?request_size__gt=1",
        ]

        for path in lookups:
            r = root._request("GET", f"/admin/accounts/{path}")
            assert refusal(r) == (400, "bad_request"), path

    @pytest.mark.parametrize(
        "path",
        [
            "mfa/authenticator",
            "account/emailaddress",
            "usersessions/usersession",
            "sessions/session",
        ],
    )
    def test_nor_do_other_packages_pages_show_theirs(self, root, path):
        assert refusal(root.get(f"/admin/{path}/")) == (404, "not_found")

    def test_the_pages_that_ask_need_nothing_inline(self, root, furnished, engine):
        r = begin(root, "apikey", "revoke", furnished[0].row)
        assert not NO_INLINE.search(r.text)
        policy = r.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy


class TestTheFirstPage:
    def test_it_says_what_happened_and_what_waits(self, root, furnished, engine):
        page = re.sub(r"\s+", " ", root.get("/admin/").text)

        for name, value in (("Requests, 24 h", 3), ("Flagged", 1), ("Errors", 1)):
            assert f"<dt>{name}</dt><dd>{value}</dd>" in page
        assert "<svg" in page
        assert "3 requests, 1 flagged, 1 errors" in page
        assert "Breaker: engine" in page
        assert "Events and deliveries to webhooks that are due" in page

    def test_it_is_empty_without_any(self, root, engine):
        page = root.get("/admin/").text

        assert "<dt>Requests, 24 h</dt><dd>0</dd>" in page
        assert "<dt>p95</dt><dd>none</dd>" in page

    def test_yesterdays_are_not_in_it(self, root, acme_key, engine):
        log_rows(row_of(acme_key, at=timezone.now() - timedelta(hours=25)))

        assert "<dt>Requests, 24 h</dt><dd>0</dd>" in root.get("/admin/").text

    def test_its_queries_are_few(self, root, furnished, engine):
        assert asked(root, "/admin/") <= 12


# -- Lists ----------------------------------------------------------------------------------------


def asked(browser, path):
    """How many queries a page makes, in whichever thread."""
    queries = []

    def note(execute, sql, params, many, context):
        queries.append(sql)
        return execute(sql, params, many, context)

    from django.test import Client

    client = Client(headers={"accept": "text/html"})
    client.cookies[settings.SESSION_COOKIE_NAME] = browser.cookies[settings.SESSION_COOKIE_NAME]
    client.get(path)  # content types and the like are remembered
    with connection.execute_wrapper(note):
        assert client.get(path).status_code == 200
    return len(queries)


SEARCHES = [
    ("user", "ali", 1),
    ("user", "Alice@ACME.example", 1),
    ("user", "lice", 0),
    ("user", "{alice}", 1),
    ("workspace", "acm", 1),
    ("workspace", "bob@acme.example", 1),
    ("workspace", "{acme}", 1),
    ("workspace", "nowhere", 0),
    ("apikey", "{prefix}", 1),
    ("apikey", "{prefix}…{last4}", 1),
    ("apikey", "{prefix}…zzzz", 0),
    ("apikey", "acme", 1),
    ("apikey", "{key}", 1),
    ("usagelog", "{key}", 2),
    ("usagelog", "{acme}", 2),
    ("usagelog", "globex", 1),
    ("usagelog", "{prefix}", 2),
    ("usagelog", "{request}", 1),
    ("usagelog", "nowhere", 0),
    ("usagerollup", "", 2),
    ("usagerollup", "{key}", 1),
    ("usagerollup", "nowhere", 0),
    ("auditevent", "key.revoked", 1),
    ("auditevent", "globex", 2),
    ("auditevent", "{key}", 1),
]


TYPED = ("'", "%25", "gw_", "…", "x" * 500, " ", "@", ".", "\\")


class TestLists:
    @pytest.mark.slow
    def test_more_rows_are_no_more_queries(self, root, make_key):
        def counts():
            return {name: asked(root, f"/admin/accounts/{name}/") for name in NAMES}

        log_rows(row_of(make_key()))
        before = counts()
        for number in range(8):
            workspace = Workspace.objects.create(slug=f"w{number}", name="W")
            person = User.objects.create_user(f"p{number}@initech.example", "x")
            Membership.objects.create(workspace=workspace, user=person)
            log_rows(row_of(make_key(workspace)))

        assert counts() == before
        assert max(before.values()) <= 9

    def test_no_list_counts_all_of_its_table(self, root, furnished):
        for name in NAMES:
            with CaptureQueriesContext(connection) as captured:
                asked(root, f"/admin/accounts/{name}/")
            queries = [q["sql"] for q in captured if "GROUP BY" not in q["sql"]]
            counts = [sql for sql in queries if "COUNT(" in sql]
            assert counts, name
            assert all(f"LIMIT {lists.COUNT_MAX + 1}" in sql for sql in counts)

    def test_pages_end_where_counting_ends(self, root, make_key, monkeypatch):
        monkeypatch.setattr(lists, "COUNT_MAX", 3)
        for _ in range(5):
            make_key()

        assert "The first 3 of more: search" in root.get("/admin/accounts/apikey/").text

    def test_and_go_on_from_the_last_row(self, root, make_key, monkeypatch):
        """Page by page, in windows: each key is met, and no page lies behind `COUNT_MAX` rows."""
        monkeypatch.setattr(lists, "COUNT_MAX", 4)
        monkeypatch.setattr(ApiKeyAdmin, "list_per_page", 2)
        keys = {make_key().row.pk for _ in range(9)}
        met, query = set(), "?"
        while query:
            for number in (1, 2):
                text = root.get(f"/admin/accounts/apikey/{query}&p={number}").text
                met |= set(map(UUID, re.findall(r'name="_selected_action" value="([^"]+)"', text)))
            found = re.search(r'href="(\?from=[^"]+)">Go on', text)
            query = found and found[1]

        assert met == keys

    @pytest.mark.parametrize("place", ["x", "9" * 30, "2026-11-30", "", str(UUID(int=0))])
    def test_a_place_that_is_none_is_no_error(self, root, furnished, place):
        for name in NAMES:
            page = root.get(f"/admin/accounts/{name}/?from={place}").text
            assert 'id="changelist"' in page, name

    def test_up_to_there_it_says_how_many(self, make_key, monkeypatch):
        monkeypatch.setattr(lists, "COUNT_MAX", 3)
        for _ in range(3):
            make_key()

        paginator = BoundedPaginator(ApiKey.objects.order_by("-id"), 50)

        assert (paginator.count, paginator.is_cut) == (3, False)

    def test_no_column_sorts_without_an_index(self, root, furnished):
        with CaptureQueriesContext(connection) as captured:
            asked(root, "/admin/accounts/apikey/?o=1.-4")

        assert not any('ORDER BY "accounts_apikey"."name"' in q["sql"] for q in captured)
        assert "sortable" not in root.get("/admin/accounts/apikey/").text

    def test_searching_is_finding(self, root, furnished, alice, acme):
        key = furnished[0].row
        words = {
            "alice": alice.pk,
            "acme": acme.pk,
            "key": key.pk,
            "prefix": key.prefix,
            "last4": key.last4,
            "request": UsageLog.objects.filter(api_key_id=key.pk).first().request_id,
        }

        for name, term, rows in SEARCHES:
            found = root.get(f"/admin/accounts/{name}/?q={term.format(**words)}")
            assert listed(found) == rows, (name, term)

    def test_whatever_is_typed_is_no_error(self, root, furnished):
        for name, term in product(NAMES, TYPED):
            page = root.get(f"/admin/accounts/{name}/?q={term}").text
            assert 'id="changelist"' in page, (name, term)

    def test_the_kinds_of_users(self, root, furnished, bob):
        User.objects.filter(pk=bob.pk).update(is_active=False)

        assert listed(root.get("/admin/accounts/user/?kind=staff")) == 1
        assert listed(root.get("/admin/accounts/user/?kind=suspended")) == 1

    def test_playground_keys_are_shown_when_asked_for(self, root, acme, acme_key, alice):
        services.session_key(acme, alice, actor=services.Actor("test"))

        assert listed(root.get("/admin/accounts/apikey/")) == 1
        assert listed(root.get("/admin/accounts/apikey/?state=playground")) == 1


class TestTheLogsRange:
    @pytest.fixture
    def aged(self, acme_key):
        now = timezone.now()
        for age in (timedelta(minutes=1), timedelta(minutes=40), timedelta(hours=5)):
            log_rows(row_of(acme_key, at=now - age))
        return now

    def test_there_is_always_one(self, root, aged):
        for query, rows in (
            ("", 2),
            ("?range=last 15 minutes", 1),
            ("?range=last 6 hours", 3),
            ("?range=for ever", 2),
            ("?since=nonsense", 2),
            ("?since=2026-02-31T00:00", 2),
            ("?since=2000-01-01T00:00", 3),
            ("?until=2000-01-01T00:00", 0),
        ):
            assert listed(root.get(f"/admin/accounts/usagelog/{query}")) == rows, query

    def test_it_may_be_said_to_the_minute(self, root, aged):
        since, until = aged - timedelta(hours=6), aged - timedelta(hours=4)
        query = f"?since={since:%Y-%m-%dT%H:%M}&until={until:%Y-%m-%dT%H:%M}"

        page = root.get(f"/admin/accounts/usagelog/{query}")

        assert listed(page) == 1
        assert f'value="{since:%Y-%m-%dT%H:%M}"' in page.text

    def test_an_id_of_a_request_is_its_own_range(self, root, acme_key):
        at = timezone.now() - timedelta(days=3)
        milliseconds = int(at.timestamp() * 1000)
        request_id = f"{milliseconds:012x}"
        request_id = f"{request_id[:8]}-{request_id[8:]}-7000-8000-000000000001"
        log_rows(row_of(acme_key, at=at + timedelta(seconds=1), request_id=request_id))

        assert listed(root.get("/admin/accounts/usagelog/")) == 0
        assert listed(root.get(f"/admin/accounts/usagelog/?q={request_id}")) == 1

    def test_outcomes(self, root, furnished):
        for outcome, rows in (("errors", 1), ("flagged", 1), ("", 3)):
            assert listed(root.get(f"/admin/accounts/usagelog/?outcome={outcome}")) == rows


PLANS = [
    ("user", "?q=alice", "like"),
    ("user", "?kind=staff", "user_staff"),
    ("user", "?kind=suspended", "user_suspended"),
    ("workspace", "?state=suspended", "workspace_suspended"),
    ("apikey", "?state=revoked", "Index Scan"),
    ("apikey", "?q=gw_live_Ab12…zzzz", "key_shown"),
    ("usagelog", "", "created_at"),
    ("usagelog", "?outcome=errors", "created_at"),
    ("auditevent", "?q=key.revoked", "audit_action_time"),
    ("auditevent", "?q=root@gateway.example", "audit_actor_time"),
    ("auditevent", "?q=01a20a36-1330-7355-8949-fe34e19f0e27", "audit_request"),
]


@pytest.mark.slow
@pytest.mark.needs_postgresql
def test_every_filter_has_its_index(root, furnished):
    for name, query, index in PLANS:
        plan = plan_of(root, name, query)
        assert f"Seq Scan on accounts_{name}" not in plan, plan
        assert index in plan, plan


def plan_of(root, name, query):
    """With sequential scans forbidden: where one is left, no index would serve."""
    table = f"accounts_{name}"
    with CaptureQueriesContext(connection) as captured:
        asked(root, f"/admin/accounts/{name}/{query}")
    [*_, rows] = [
        q["sql"]
        for q in captured
        if f'FROM "{table}"' in q["sql"] and f'ORDER BY "{table}"' in q["sql"]
    ]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        # As if each table had ten million rows: with a few, one index is as good as another.
        cursor.execute(
            "UPDATE pg_class SET reltuples = 1e7, relpages = 1 "
            "WHERE relname LIKE 'accounts_%' AND relkind = 'r'"
        )
        # And nobody had looked into them, as PostgreSQL may have, when there were four.
        cursor.execute("DELETE FROM pg_statistic WHERE starelid::regclass::text LIKE 'accounts_%'")
        cursor.execute(f"EXPLAIN {rows}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
        transaction.set_rollback(True)
    return plan


# -- Breakers -------------------------------------------------------------------------------------


class TestBreakers:
    def force(self, browser, name="engine", state="open"):
        return browser.post("/admin/breakers/", name=name, state=state)

    def test_it_shows_this_process(self, root, engine):
        page = root.get("/admin/breakers/").text

        assert breaker._me() in page
        assert "0 failures in a row" in page

    @pytest.mark.parametrize("state", ["open", "closed", "auto"])
    def test_superusers_hold_it_and_that_is_audited(self, root, engine, state):
        r = self.force(root, state=state)

        assert r.status_code == 302
        expected = {"open": "open", "closed": "closed", "auto": None}[state]
        assert registry.default().breaker.forced == expected
        event = AuditEvent.objects.get(action="breaker.forced")
        assert (event.actor, event.target) == ("root@gateway.example", "engine")
        assert event.details == {"state": state}
        breaker.force_everywhere("engine", None)

    def test_held_open_spares_the_engine_and_is_let_go_again(self, root, engine, gateway, acme_key):
        self.force(root, state="open")
        assert gateway.detect("Good morning.", key=acme_key).json()["source"] == "fallback"
        assert "forced" in root.get("/admin/breakers/").text

        self.force(root, state="auto")

        assert gateway.detect("Good evening.", key=acme_key).json()["source"] == "engine"

    def test_others_of_staff_look_and_do_not_touch(self, viewer, engine):
        page = viewer.get("/admin/breakers/")

        assert page.status_code == 200
        assert 'name="state"' not in page.text
        assert self.force(viewer).status_code == 403
        assert registry.default().breaker.forced is None
        assert not AuditEvent.objects.exists()

    @pytest.mark.parametrize(("name", "state"), [("nothing", "open"), ("engine", "ajar"), ("", "")])
    def test_what_there_is_not_is_not_forced(self, root, engine, name, state):
        assert self.force(root, name, state).status_code == 302

        assert "Nothing was changed" in root.get("/admin/breakers/").text
        assert not AuditEvent.objects.exists()

    def test_without_redis_nothing_is_said_to_be_done(self, root, engine, monkeypatch):
        if not settings.REDIS_URL:
            pytest.skip("needs Redis")
        from redis.exceptions import ConnectionError as RedisConnectionError

        class Away:
            def __getattr__(self, name):
                raise RedisConnectionError("away")

        monkeypatch.setattr(breaker.redis, "client", Away)

        self.force(root)

        assert not AuditEvent.objects.exists()
        assert "only the process that made this page" in root.get("/admin/breakers/").text


def test_the_first_page_draws_what_a_chart_is_made_of():
    """Charts are the portal's; the style sheet is the admin's, and once lagged behind."""
    root = settings.BASE_DIR
    chart = (root / "templates/portal/pages/plot.html").read_text()
    styles = (root / "static/accounts/admin.css").read_text()
    classes = {name for text in re.findall(r'class="([\w ]+)"', chart) for name in text.split()} - {
        "between"
    }

    assert len(classes) > 8
    assert {name for name in classes if f".{name}" not in styles} == set()
