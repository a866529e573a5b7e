"""`/admin/stats`, `/admin/users`, `/admin/usage/{api_key_id}`: for a role alone, true numbers."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from allauth.mfa.models import Authenticator
from django.contrib.auth.models import Group
from django.db import connection
from django.test import Client
from django.urls import URLPattern
from django.utils import timezone

from accounts import services
from accounts.models import ApiKey, User, Workspace
from accounts.services import Actor
from accounts.tests.shapes import fields, moment, problem, refusal
from gateway_project.staff.schemas import KeyUsage, StaffUserList, Stats
from gateway_project.tests.test_desk import staff_of
from gateway_project.tests.test_staff_admin import log_rows, row_of, signed_in
from gateway_project.urls import urlpatterns

PATHS = {"/admin/stats": Stats, "/admin/users": StaffUserList, "/admin/usage/{id}": KeyUsage}


@pytest.fixture
def person(gateway):
    return staff_of("support")


@pytest.fixture
def staff(gateway, person):
    return signed_in(gateway, person)


def get(browser, path, **query):
    from urllib.parse import urlencode

    return browser._request(
        "GET", f"{path}?{urlencode(query)}", headers={"Accept": "application/json"}
    )


class TestWho:
    def test_staff_with_a_session(self, staff, acme_key):
        for path, answer in PATHS.items():
            assert answer.model_validate_json(get(staff, path.format(id=acme_key.row.pk)).content)

    def test_with_a_slash_too(self, staff, acme_key):
        for path, answer in PATHS.items():
            r = get(staff, path.format(id=acme_key.row.pk) + "/")

            assert answer.model_validate_json(r.content)

    def test_staff_with_a_token(self, member, acme_key):
        for path, answer in PATHS.items():
            token = member(None, is_staff=True)
            token.user.groups.add(Group.objects.get_or_create(name="finance")[0])

            r = token.get(path.format(id=acme_key.row.pk))

            assert answer.model_validate_json(r.content)

    def test_nobody_else_finds_anything_there(self, gateway, member, alice, acme_key):
        for path in PATHS:
            path = path.format(id=acme_key.row.pk)
            answers = [
                gateway.get(path),
                gateway.get(path, key=acme_key),
                gateway.get(path, headers={"Authorization": f"Bearer {acme_key}"}),
                gateway.get(path, headers={"Accept": "text/html"}),
                get(signed_in(gateway, alice), path),
                member("ROLE_ADMIN").get(path),
                gateway.post(path, {}),
                gateway.delete(path),
            ]

            for r in answers:
                problem(r, 404, "not_found")

    def test_nothing_else_stands_beside_the_admins_site_and_its_endpoints(self):
        beside = [str(one.pattern) for one in urlpatterns if isinstance(one, URLPattern)]

        assert [f"/{path}" for path in beside if path.startswith("admin/")] == [
            path.replace("{id}", "<str:api_key_id>") for path in PATHS
        ]

    def test_without_a_role_nothing_is_seen_by_session_or_token(self, gateway, member, acme_key):
        clients = [signed_in(gateway, staff_of()), member(None, is_staff=True)]
        for path in PATHS:
            for client_ in clients:
                r = client_.get(path.format(id=acme_key.row.pk))

                assert refusal(r) == (403, "permission_denied"), path

    def test_nor_without_the_second_factor_that_the_admin_wants(
        self, staff, member, person, acme_key, settings
    ):
        settings.STAFF_TWO_FACTORS = True
        token = member(None, is_staff=True, is_superuser=True)
        for path in PATHS:
            for client_ in (staff, token):
                r = client_.get(path.format(id=acme_key.row.pk))

                assert refusal(r) == (403, "permission_denied"), path
                assert "/accounts/2fa/" in r.json()["detail"]

        Authenticator.objects.create(user=person, type=Authenticator.Type.WEBAUTHN, data={})
        assert get(staff, "/admin/users").status_code == 200

    def test_a_suspended_one_is_nobody(self, staff, person):
        User.objects.filter(pk=person.pk).update(is_active=False)

        problem(get(staff, "/admin/stats"), 404, "not_found")

    def test_a_wrong_method_is_said_to_staff_only(self, staff, acme_key):
        for path in PATHS:
            r = staff._request("OPTIONS", path.format(id=acme_key.row.pk))

            problem(r, 405, "method_not_allowed")

    def test_their_calls_are_counted(self, staff, settings):
        settings.RATE_LIMIT_PER_MINUTE = 3

        *taken, last = [get(staff, "/admin/users") for _ in range(4)]

        assert [r.status_code for r in taken] == [200] * 3
        assert refusal(last) == (429, "rate_limited")


class TestStats:
    def test_the_numbers_are_those_of_the_log(self, staff, engine, acme_key, globex_key):
        log_rows(
            row_of(acme_key),
            row_of(acme_key, flagged=True),
            row_of(globex_key, http_status=503),
            row_of(globex_key, at=timezone.now() - timedelta(days=2)),
        )

        r = get(staff, "/admin/stats")

        body = r.json()
        assert Stats.model_validate_json(r.content, strict=True)
        assert body["requests"] == 3
        assert (body["flagged_rate"], body["error_rate"]) == (1 / 3, 1 / 3)
        assert body["degraded_rate"] == 0
        assert 10 <= body["latency_ms"]["p50"] <= body["latency_ms"]["p99"] <= 20
        assert body["active_keys"] == {"d1": 2, "d7": 2, "d30": 2}
        assert body["new_workspaces"] == 2
        assert body["webhooks"] == {"delivered_rate": None, "oldest_pending_seconds": 0.0}
        assert body["jobs"] == {"queued": 0, "processing": 0, "oldest_queued_seconds": None}
        assert body["breakers"]["engine"]["state"] == "closed"
        assert [point["requests"] for point in body["series"]] == [3]
        moment(body["series"][0]["at"])

    def test_of_a_range(self, staff, engine, acme_key):
        now = timezone.now()
        log_rows(*(row_of(acme_key, at=now - timedelta(days=n)) for n in (1, 3, 3, 40)))

        def requests(**query):
            return get(staff, "/admin/stats", **query).json()["requests"]

        def ago(days):
            return (now - timedelta(days=days)).isoformat()

        assert requests(since=ago(4)) == 3
        assert requests(since=ago(4), until=ago(2)) == 2
        assert requests(since=ago(60)) == 4
        assert requests(until=ago(30), since=ago(50)) == 1

    def test_webhooks_that_arrived_and_that_did_not(self, staff, engine, acme):
        from webhooks import services as webhooks
        from webhooks.models import WebhookDelivery

        webhook, _ = webhooks.register(
            acme.pk, "https://198.41.0.4/hook", ["quota.80"], actor=Actor("test")
        )
        made = [webhooks.test(webhook, "quota.80") for _ in range(5)]
        statuses = ("delivered", "delivered", "delivered", "failed", "pending")
        for delivery, status in zip(made, statuses, strict=True):
            WebhookDelivery.objects.filter(pk=delivery.pk).update(
                status=status,
                is_test=False,
                next_attempt_at=timezone.now() - timedelta(seconds=90),
            )

        body = get(staff, "/admin/stats").json()["webhooks"]

        assert body["delivered_rate"] == 0.75
        assert 90 <= body["oldest_pending_seconds"] < 300
        earlier = (timezone.now() - timedelta(hours=1)).isoformat()
        assert (
            get(staff, "/admin/stats", until=earlier).json()["webhooks"]["delivered_rate"] is None
        )

    def test_bad_parameters_are_named(self, staff, engine):
        for query, field in (
            ({"since": "yesterday"}, "since"),
            ({"since": "2026-01-01T00:00:00"}, "since"),
            ({"until": "2026-13-01T00:00:00Z"}, "until"),
            ({"since": "2026-02-01T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, ""),
            ({"since": "1900-01-01T00:00:00Z"}, ""),
            ({"until": "0001-01-01T00:00:00Z"}, ""),
            ({"since": "9999-12-31T23:59:59-12:00"}, "since"),
            ({"sinze": "2026-02-01T00:00:00Z"}, "sinze"),
        ):
            assert list(fields(get(staff, "/admin/stats", **query))) == [field]


class TestUsers:
    def test_each_with_what_is_theirs(self, staff, alice, bob, acme_key, make_key, globex_key):
        log_rows(row_of(acme_key), row_of(acme_key), row_of(globex_key))
        services.revoke_key(make_key().row, actor=Actor("test"))

        r = get(staff, "/admin/users")

        assert StaffUserList.model_validate_json(r.content, strict=True)
        rows = {row["email"]: row for row in r.json()["results"]}
        assert rows["alice@acme.example"] == {
            "id": str(alice.pk),
            "email": "alice@acme.example",
            "confirmed": True,
            "is_active": True,
            "workspaces": 1,
            "keys": 1,
            "last_login_at": None,
            "requests_30d": 2,
        }
        assert rows["charlie@globex.example"]["requests_30d"] == 1
        assert rows["support@gateway.example"]["workspaces"] == 0
        assert r.json()["next"] is None

    def test_all_are_met_once_page_by_page_in_order(self, staff, alice, bob, charlie):
        for ordering in ("email", "-email", "date_joined", "-date_joined"):
            met, url = [], f"/admin/users?limit=2&ordering={ordering}"
            while url:
                page = staff._request("GET", url).json()
                met += [row["email"] for row in page["results"]]
                url = page["next"]

            by = {"email": "email", "date_joined": "id"}[ordering.strip("-")]
            sign = "-" if ordering.startswith("-") else ""
            assert met == list(User.objects.order_by(sign + by).values_list("email", flat=True))

    @pytest.mark.parametrize(
        ("search", "found"), [("ALICE", 1), ("a", 1), ("acme", 0), ("{id}", 1), ("%", 0), ("", 3)]
    )
    def test_search(self, staff, alice, bob, search, found):
        r = get(staff, "/admin/users", search=search.format(id=alice.pk))

        assert len(r.json()["results"]) == found

    def test_bad_parameters_are_named(self, staff):
        for query, field in (
            ({"ordering": "password"}, "ordering"),
            ({"limit": "0"}, "limit"),
            ({"limit": "201"}, "limit"),
            ({"limit": "many"}, "limit"),
            ({"search": "a\0"}, "search"),
            ({"search": "x" * 255}, "search"),
            ({"page": "2"}, "page"),
        ):
            assert list(fields(get(staff, "/admin/users", **query))) == [field]

    def test_a_broken_cursor_leads_nowhere(self, staff):
        problem(get(staff, "/admin/users", cursor="zzz"), 404, "not_found")

    def test_more_people_are_no_more_queries(self, staff, person, alice, acme_key):
        def queries():
            asked = []

            def note(execute, sql, params, many, context):
                asked.append(sql)
                return execute(sql, params, many, context)

            client = Client()
            client.force_login(person)
            with connection.execute_wrapper(note):
                assert client.get("/admin/users").status_code == 200
            return len(asked)

        before = queries()
        for number in range(6):
            services.register(f"p{number}@initech.example", "correct horse battery")

        assert queries() == before <= 8


class TestUsage:
    def test_totals_series_endpoints_and_statuses(self, staff, acme_key, globex_key):
        now = timezone.now()
        log_rows(
            row_of(acme_key, at=now - timedelta(days=1)),
            row_of(acme_key, flagged=True),
            row_of(acme_key, endpoint="/v1/detect/batch", http_status=422),
            row_of(globex_key),
        )

        r = get(staff, f"/admin/usage/{acme_key.row.pk}")

        body = r.json()
        assert KeyUsage.model_validate_json(r.content, strict=True)
        assert body["api_key_id"] == str(acme_key.row.pk)
        assert body["period"] == "day"
        assert {k: v for k, v in body["totals"].items() if k != "latency_ms"} == {
            "requests": 3,
            "flagged": 1,
            "errors": 1,
            "degraded": 0,
            "cached": 0,
            "request_bytes": 30,
        }
        assert body["totals"]["latency_ms"]["p50"] > 0
        assert [point["requests"] for point in body["series"]] == [1, 2]
        by_endpoint = {row["endpoint"]: row["requests"] for row in body["by_endpoint"]}
        assert by_endpoint == {"/v1/detect": 2, "/v1/detect/batch": 1}
        by_status = {row["status"]: (row["requests"], row["errors"]) for row in body["by_status"]}
        assert by_status == {200: (2, 0), 422: (1, 1)}

    def test_by_the_hour_when_the_range_is_short_or_it_is_asked_for(self, staff, acme_key):
        path = f"/admin/usage/{acme_key.row.pk}"
        now = timezone.now()
        log_rows(*(row_of(acme_key, at=now - timedelta(hours=n)) for n in (0, 2)))

        for query in ({"since": (now - timedelta(days=3)).isoformat()}, {"period": "hour"}):
            body = get(staff, path, **query).json()

            assert body["period"] == "hour"
            assert [point["requests"] for point in body["series"]] == [1, 1]

    def test_an_unused_key(self, staff, acme_key):
        body = get(staff, f"/admin/usage/{acme_key.row.pk}").json()

        assert body["totals"]["requests"] == 0
        assert body["totals"]["latency_ms"] == {"p50": None, "p95": None, "p99": None}
        assert (body["series"], body["by_endpoint"], body["by_status"]) == ([], [], [])

    def test_an_unknown_key(self, staff, acme):
        for unknown in (uuid4(), acme.pk):
            problem(get(staff, f"/admin/usage/{unknown}"), 404, "not_found")

    def test_bad_parameters_are_named(self, staff, acme_key):
        for query, field in (
            ({"period": "minute"}, "period"),
            ({"since": "x"}, "since"),
            ({"key": "1"}, "key"),
        ):
            r = get(staff, f"/admin/usage/{acme_key.row.pk}", **query)

            assert list(fields(r)) == [field]

    def test_hours_are_not_asked_for_longer_than_they_are_kept(self, staff, acme_key):
        since = (timezone.now() - timedelta(days=96)).isoformat()
        path = f"/admin/usage/{acme_key.row.pk}"

        assert fields(get(staff, path, period="hour", since=since))
        assert get(staff, path, since=since).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_refusals_are_told_apart(gateway, staff, acme_key, engine, path):
    log_rows(row_of(acme_key))
    path = path.format(id=acme_key.row.pk)

    assert get(staff, path).status_code == 200
    assert refusal(gateway.get(path)) == (404, "not_found")
    assert refusal(get(staff, path, nonsense=1)) == (422, "validation_error")
    forged = {"Authorization": "Bearer not.a.token"}
    assert refusal(gateway.get(path, headers=forged)) == (401, "invalid_token")


def test_a_workspace_of_no_one_is_in_the_numbers_all_the_same(staff, engine, make_key):
    key = make_key(Workspace.objects.create(slug="operators", name="Operators"))
    log_rows(row_of(key))

    assert get(staff, "/admin/stats").json()["requests"] == 1
    assert ApiKey.objects.count() == 1
