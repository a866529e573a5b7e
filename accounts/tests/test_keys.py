"""GET|POST /v1/keys and GET|PATCH|DELETE /v1/keys/{id}"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from django.utils import timezone

from accounts import services, views
from accounts.keys import is_well_formed
from accounts.models import ApiKey, AuditEvent, Plan
from accounts.services import Actor
from accounts.tests.shapes import KEY_FIELDS, fields, moment, problem, refusal, same_but_for_ids


@pytest.fixture
def admin(gateway, acme_admin_key):
    """The API as a key with `keys:write` uses it: `admin("POST", json={…})`."""

    def call(method, path="", **more):
        return gateway.request(method, f"/v1/keys{path}", key=acme_admin_key, **more)

    return call


class TestMake:
    def test_it_has_the_fields_of_the_contract(self, admin):
        r = admin("POST", json={})

        body = r.json()
        key = ApiKey.objects.get(pk=body["id"])
        assert r.status_code == 201
        assert r.headers["location"] == f"/v1/keys/{key.pk}"
        assert set(body) == KEY_FIELDS | {"key"}
        text = body.pop("key")
        assert is_well_formed(text)
        assert UUID(body["id"]).version == 7
        moment(body.pop("created_at"))
        assert body == {
            "id": str(key.pk),
            "prefix": text[:12],
            "last4": text[-4:],
            "name": "API key",
            "status": "active",
            "scopes": ["detect", "batch", "webhooks", "usage:read"],
            "allowed_cidrs": [],
            "rate_limit_per_minute": 60,
            "rate_limit_per_day": 10_000,
            "expires_at": None,
            "grace_until": None,
            "revoked_at": None,
            "replaced_by": None,
            "last_used_at": None,
            "last_used_ip": None,
            "tags": [],
            "owner": "",
            "is_test": False,
        }

    def test_it_takes_every_field(self, admin, gateway):
        ends = (timezone.now() + timedelta(days=9)).replace(microsecond=0)

        r = admin(
            "POST",
            json={
                "name": "  ingest  ",
                "scopes": ["detect"],
                "allowed_cidrs": ["127.0.0.1"],
                "expires_at": ends.isoformat(),
                "rate_limit_per_minute": 5,
                "rate_limit_per_day": 50,
            },
        )

        body = r.json()
        assert r.status_code == 201
        assert body["name"] == "ingest"
        assert body["scopes"] == ["detect"]
        assert body["allowed_cidrs"] == ["127.0.0.1/32"]
        assert moment(body["expires_at"]) == ends
        assert (body["rate_limit_per_minute"], body["rate_limit_per_day"]) == (5, 50)
        assert gateway.get("/v1/limits", key=body["key"]).json()["policies"][0]["limit"] == 5

    def test_the_key_belongs_to_the_callers_workspace_and_works(self, admin, gateway, acme):
        text = admin("POST", json={}).json()["key"]

        assert gateway.get("/auth/profile", key=text).json()["workspace"]["id"] == str(acme.pk)

    def test_the_text_is_shown_this_once(self, admin):
        made = admin("POST", json={}).json()

        shown_later = admin("GET").text + admin("GET", f"/{made['id']}").text
        assert made["key"] not in shown_later
        assert made["key"].split("_")[2] not in shown_later
        assert made["key"] not in repr([*ApiKey.objects.values(), *AuditEvent.objects.values()])

    def test_it_is_audited(self, admin, acme_admin_key):
        made = admin("POST", json={}).json()

        event = AuditEvent.objects.get(action="key.created", target=made["id"])
        assert event.actor == f"key {acme_admin_key[:12]}…"

    @pytest.mark.parametrize(
        ("field", "most"), [("rate_limit_per_minute", 60), ("rate_limit_per_day", 10_000)]
    )
    def test_its_limits_never_exceed_the_plan(self, admin, field, most):
        within, beyond = admin("POST", json={field: most}), admin("POST", json={field: most + 1})

        assert within.status_code == 201
        assert fields(beyond) == {field: f"at most {most} on the plan 'free'"}
        assert ApiKey.objects.count() == 2

    def test_a_larger_plan_gives_more(self, admin, acme):
        acme.plan = Plan.objects.get(name="team")
        acme.save()

        limits = {"rate_limit_per_minute": 600, "rate_limit_per_day": 200_000}
        made = admin("POST", json=limits).json()

        assert limits.items() <= made.items()

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("203.0.113.77/24", "203.0.113.0/24"),
            ("203.0.113.77", "203.0.113.77/32"),
            ("2001:DB8::1/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
        ],
    )
    def test_networks_are_kept_in_one_form(self, admin, given, kept):
        r = admin("POST", json={"allowed_cidrs": [given]})

        assert r.json()["allowed_cidrs"] == [kept]

    @pytest.mark.parametrize(
        "body",
        [
            {"name": ""},
            {"name": "x" * 101},
            {"name": "nul\x00"},
            {"name": "two\nlines"},
            {"tags": ["two\rlines"]},
            {"owner": "two\x85lines"},
            {"scopes": []},
            {"scopes": ["everything"]},
            {"scopes": "detect"},
            {"allowed_cidrs": ["example.com"]},
            {"allowed_cidrs": ["10.0.0.0/33"]},
            {"allowed_cidrs": ["fe80::%eth0"]},
            {"allowed_cidrs": ["10.0.0.0/8"] * 51},
            {"allowed_cidrs": None},
            {"expires_at": "2020-01-01T00:00:00Z"},
            {"expires_at": "2999-01-01T00:00:00"},
            {"expires_at": "tomorrow"},
            {"expires_at": "9999-12-31T23:59:59-12:00"},
            {"rate_limit_per_minute": 0},
            {"rate_limit_per_minute": -1},
            {"rate_limit_per_minute": 2_000_000_001},
            {"rate_limit_per_minute": 1.5},
            {"rate_limit_per_day": "many"},
        ],
        ids=str,
    )
    def test_it_names_a_bad_field_and_makes_no_key(self, admin, body):
        r = admin("POST", json=body)

        [name] = body
        assert {field.split(".")[0] for field in fields(r)} == {name}
        assert ApiKey.objects.count() == 1

    def test_a_past_expiry_says_so(self, admin):
        r = admin("POST", json={"expires_at": "2020-01-01T00:00:00Z"})

        assert fields(r) == {"expires_at": "lies in the past"}

    def test_it_lists_the_known_fields_beside_an_unknown_one(self, admin):
        r = admin("POST", json={"scope": "detect"})

        assert fields(r) == {
            "scope": "unknown field; known here: allowed_cidrs, expires_at, is_test, name, owner, "
            "rate_limit_per_day, rate_limit_per_minute, scopes, tags"
        }


class TestList:
    def test_it_has_the_fields_of_the_contract(self, admin, acme_admin_key):
        r = admin("GET")

        assert r.status_code == 200
        assert set(r.json()) == {"results", "next"}
        assert [set(key) for key in r.json()["results"]] == [KEY_FIELDS]
        assert r.json()["results"][0]["id"] == str(acme_admin_key.row.pk)
        assert r.json()["next"] is None

    def test_it_is_newest_first_and_holds_revoked_keys(self, admin, gateway, make_key):
        older, newer = make_key(name="older"), make_key(name="newer")
        gateway.delete("/auth/revoke", key=older)

        results = admin("GET").json()["results"]

        assert [key["name"] for key in results] == ["newer", "older", "acme admin"]
        assert [key["status"] for key in results] == ["active", "revoked", "active"]
        moment(results[1]["revoked_at"])
        assert gateway.get("/v1/limits", key=newer).status_code == 200

    def test_it_never_holds_another_tenants_keys(self, admin, globex_key):
        assert str(globex_key.row.pk) not in admin("GET").text

    def test_next_leads_through_all_pages(self, admin, gateway, acme_admin_key, make_key):
        made = {str(make_key(name=f"n{i}").row.pk) for i in range(6)}
        seen, sizes, url = [], [], "/v1/keys?limit=3"

        while url:
            page = gateway.get(url, key=acme_admin_key).json()
            seen += [key["id"] for key in page["results"]]
            sizes.append(len(page["results"]))
            url = page["next"]
            assert url is None or url.startswith("http://testserver/v1/keys?")

        assert sizes == [3, 3, 1]
        assert len(seen) == len(set(seen)) == 7
        assert set(seen) == made | {str(acme_admin_key.row.pk)}

    def test_next_works_among_keys_made_in_the_same_instant(
        self, gateway, acme_admin_key, make_key
    ):
        for _ in range(5):
            make_key()
        ApiKey.objects.update(created_at=datetime(2026, 1, 1, tzinfo=UTC))
        seen, url = [], "/v1/keys?limit=2"

        while url:
            page = gateway.get(url, key=acme_admin_key).json()
            seen += [key["id"] for key in page["results"]]
            url = page["next"]

        assert len(seen) == len(set(seen)) == 6

    def test_a_page_is_50_and_at_most_200(self, admin, acme, acme_admin_key):
        row = ApiKey.objects.get()
        ApiKey.objects.bulk_create(
            ApiKey(
                workspace=acme,
                name=f"n{i}",
                prefix=row.prefix,
                last4=row.last4,
                key_hash=f"{i:064x}",
                pepper_version=1,
            )
            for i in range(209)
        )

        sizes = [
            len(admin("GET", query).json()["results"]) for query in ("", "?limit=200", "?limit=1")
        ]

        assert sizes == [50, 200, 1]

    @pytest.mark.parametrize("limit", ["0", "-3", "201", "x", ""])
    def test_a_senseless_limit_is_refused(self, admin, limit):
        r = admin("GET", f"?limit={limit}")

        problem(r, 422, "validation_error")
        assert list(fields(r)) == ["limit"]

    def test_a_broken_cursor_is_404(self, admin):
        problem(admin("GET", "?cursor=zzz"), 404, "not_found")


class TestOne:
    def test_it_has_the_fields_of_the_contract(self, admin, acme_key):
        r = admin("GET", f"/{acme_key.row.pk}")

        assert r.status_code == 200
        assert set(r.json()) == KEY_FIELDS
        assert r.json()["name"] == "acme"

    @pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
    def test_a_strangers_key_is_as_missing_as_one_that_never_was(self, admin, globex_key, method):
        body = {"json": {"name": "mine now"}} if method == "PATCH" else {}
        path = f"/{globex_key.row.pk}"

        other, missing = admin(method, path, **body), admin(method, f"/{uuid4()}", **body)

        problem(other, 404, "not_found")
        assert other.json()["detail"] == missing.json()["detail"]
        assert other.headers.keys() == missing.headers.keys()
        globex_key.row.refresh_from_db()
        assert globex_key.row.name == "globex"
        assert globex_key.row.revoked_at is None

    def test_the_two_404_differ_in_their_path_alone(self, admin, globex_key):
        one, other = admin("GET", f"/{globex_key.row.pk}"), admin("GET", f"/{uuid4()}")

        bodies = [r.json() | {"instance": "", "request_id": ""} for r in (one, other)]
        assert bodies[0] == bodies[1]
        assert not same_but_for_ids(one, other)  # `instance` is the path that was asked for

    @pytest.mark.parametrize("path", ["/x", "/123", "/00000000-0000-0000-0000-00000000000G"])
    def test_what_is_no_uuid_is_404(self, admin, path):
        problem(admin("GET", path), 404, "not_found")


class TestChange:
    @pytest.fixture
    def change(self, admin, make_key):
        key = make_key(
            name="old",
            scopes=["detect"],
            allowed_cidrs=["127.0.0.0/8"],
            expires_at=timezone.now() + timedelta(days=5),
            rate_limit_per_minute=5,
            rate_limit_per_day=50,
        )

        def patch(**body):
            return admin("PATCH", f"/{key.row.pk}", json=body)

        patch.key = key
        return patch

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("name", "new"),
            ("scopes", ["batch", "keys:write"]),
            ("allowed_cidrs", []),
            ("allowed_cidrs", ["10.0.0.0/8"]),
            ("rate_limit_per_minute", 60),
            ("rate_limit_per_day", 10_000),
        ],
    )
    def test_it_changes_the_named_field_alone(self, change, field, value):
        before = change().json()

        r = change(**{field: value})

        assert r.status_code == 200
        assert set(r.json()) == KEY_FIELDS
        assert r.json() == before | {field: value}
        assert change().json() == before | {field: value}

    @pytest.mark.parametrize(
        "field",
        ["name", "scopes", "allowed_cidrs", "rate_limit_per_minute", "rate_limit_per_day"],
    )
    def test_null_leaves_a_field_as_it_is(self, change, field):
        before = change().json()

        r = change(**{field: None})

        assert r.status_code == 200
        assert r.json() == before

    def test_null_takes_an_expiry_away(self, change):
        r = change(expires_at=None)

        assert r.json()["expires_at"] is None
        assert ApiKey.objects.get(pk=change.key.row.pk).expires_at is None

    def test_it_counts_from_the_next_call_on(self, change, gateway):
        assert gateway.get("/v1/limits", key=change.key).status_code == 200

        change(allowed_cidrs=["203.0.113.0/24"])

        problem(gateway.get("/v1/limits", key=change.key), 403, "ip_not_allowed")

    @pytest.mark.parametrize(
        ("field", "most"), [("rate_limit_per_minute", 60), ("rate_limit_per_day", 10_000)]
    )
    def test_its_limits_never_exceed_the_plan(self, change, field, most):
        before = change().json()

        r = change(**{field: most + 1})

        assert fields(r) == {field: f"at most {most} on the plan 'free'"}
        assert change().json() == before

    def test_a_past_expiry_is_refused(self, change):
        assert fields(change(expires_at="2020-01-01T00:00:00Z")) == {
            "expires_at": "lies in the past"
        }

    @pytest.mark.parametrize("field", ["id", "key", "revoked_at", "workspace", "status"])
    def test_what_is_not_to_be_changed_is_an_unknown_field(self, change, field):
        r = change(**{field: "x"})

        assert list(fields(r)) == [field]

    def test_it_is_audited_with_what_was_before(self, change):
        change(name="new name", rate_limit_per_minute=6)

        event = AuditEvent.objects.get(action="key.changed")
        assert event.target == str(change.key.row.pk)
        changes = event.details["changes"]
        assert {name: pair[1] for name, pair in changes.items()} == {
            "name": "new name",
            "rate_limit_per_minute": 6,
        }

    def test_changing_nothing_is_no_event(self, change):
        change()
        change(name=None)

        assert not AuditEvent.objects.filter(action="key.changed").exists()


class TestRevoke:
    def test_it_ends_the_key_at_once(self, admin, gateway, acme_key):
        assert gateway.get("/v1/limits", key=acme_key).status_code == 200

        r = admin("DELETE", f"/{acme_key.row.pk}")

        assert (r.status_code, r.content) == (204, b"")
        problem(gateway.get("/v1/limits", key=acme_key), 401, "invalid_api_key")
        assert admin("GET", f"/{acme_key.row.pk}").json()["status"] == "revoked"

    def test_it_can_be_the_calling_key(self, admin, acme_admin_key):
        assert admin("DELETE", f"/{acme_admin_key.row.pk}").status_code == 204

        assert refusal(admin("GET")) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", ""), ("GET", "/{id}"), ("PATCH", "/{id}"), ("DELETE", "/{id}")],
)
def test_it_needs_the_scope(gateway, acme_key, method, path):
    r = gateway.request(method, "/v1/keys" + path.format(id=acme_key.row.pk), key=acme_key)

    body = problem(r, 403, "scope_denied")
    assert "'keys:write'" in body["detail"]


def test_status_of_an_expired_key(admin, make_key):
    key = make_key()
    ApiKey.objects.filter(pk=key.row.pk).update(expires_at=timezone.now() - timedelta(seconds=1))

    assert admin("GET", f"/{key.row.pk}").json()["status"] == "expired"


def test_a_list_costs_the_same_sql_however_long(admin, make_key, django_assert_max_num_queries):
    from accounts.models import Workspace
    from accounts.schemas import KeyView

    for _ in range(5):
        make_key()
    rows = (
        ApiKey.objects.without_policies()
        .filter(workspace=Workspace.objects.get())
        .select_related("workspace__plan")
    )

    with django_assert_max_num_queries(1):
        assert len([KeyView.of(row) for row in rows]) == 6


def test_a_list_reads_no_policies(admin, monkeypatch):
    seen = []

    def page(request, queryset, page=views.page, **how):
        seen.append(queryset.query.deferred_loading)
        return page(request, queryset, **how)

    monkeypatch.setattr(views, "page", page)

    assert admin("GET", "").status_code == 200
    assert seen == [({"detection_policy"}, True)]


@pytest.mark.hostile
class TestHowManyThereMayBe:
    """By the plan: limits, caches and look-ups grow with keys."""

    @pytest.fixture(autouse=True)
    def three(self, admin):
        Plan.objects.update(keys_max=3)

    def test_one_more_is_refused_in_words_that_help(self, admin, acme):
        answers = [admin("POST", json={}) for _ in range(3)]  # it has one already

        assert [r.status_code for r in answers] == [201, 201, 409]
        detail = problem(answers[-1], 409, "too_many")["detail"]
        assert "3 keys" in detail
        assert "/v1/keys/{id}" in detail
        assert ApiKey.objects.count() == 3

    def test_a_revoked_one_makes_room(self, admin):
        ids = [admin("POST", json={}).json()["id"] for _ in range(2)]
        admin("DELETE", f"/{ids[0]}")

        assert admin("POST", json={}).json()["status"] == "active"

    def test_all_at_once_do_not_pass_it(self, gateway, admin, acme_admin_key):
        call = {"method": "POST", "url": "/v1/keys", "json": {}}
        answers = gateway.at_once([{**call, "headers": {"X-API-Key": acme_admin_key}}] * 8)

        assert [r.status_code for r in answers].count(201) == 2
        assert ApiKey.objects.usable().count() == 3

    def test_rotating_goes_on_and_makes_no_more_than_as_many_again(self, gateway, admin, make_key):
        admin("POST", json={})
        key = make_key(name="third")

        def rotate(grace_seconds):
            nonlocal key
            r = gateway.post("/auth/rotate-key", {"grace_seconds": grace_seconds}, key=key)
            if r.status_code == 201:
                key = r.json()["api_key"]["key"]
            return refusal(r) if r.status_code >= 400 else r.status_code

        assert [rotate(3600) for _ in range(4)] == [201, 201, 201, (409, "too_many")]
        assert rotate(0) == 201
        assert ApiKey.objects.usable().count() == 6

    def test_operators_may_go_beyond(self, admin, acme):
        for _ in range(4):
            services.issue_key(acme, actor=Actor("staff"))

        assert ApiKey.objects.count() == 5

    def test_tabs_of_the_playground_are_counted_apart_and_bounded(self, admin, acme, alice):
        texts = [services.session_key(acme, alice, actor=Actor("alice"))[1] for _ in range(25)]

        usable = ApiKey.objects.usable().filter(is_session=True)
        assert usable.count() == services.SESSION_KEYS_MAX
        assert len(set(texts)) == 25
