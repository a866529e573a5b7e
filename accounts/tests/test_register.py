"""POST /auth/register"""

from __future__ import annotations

import re
import threading
from smtplib import SMTPServerDisconnected
from unittest.mock import patch
from uuid import UUID

import pytest
from django.core import mail
from django.core.mail import EmailMessage, EmailMultiAlternatives
from django.core.management import call_command
from django.db import connection
from django.db.models import QuerySet

from accounts import services
from accounts.keys import is_well_formed
from accounts.models import ApiKey, AuditEvent, Membership, OutboxEvent, User, Workspace
from accounts.tests.shapes import KEY_FIELDS, fields, moment, problem, refusal, same_but_for_ids

PASSWORD = "correct horse battery"


@pytest.fixture
def register(gateway):
    def post(email="dana@initech.example", password=PASSWORD, client_ip="127.0.0.1", **more):
        body = {"email": email, "password": password, **more}
        return gateway.post("/auth/register", body, client_ip=client_ip)

    return post


def everything_stored():
    """Every row of every table that a registration touches, as text."""
    rows = [
        row for model in (User, Workspace, ApiKey, AuditEvent) for row in model.objects.values()
    ]
    return repr(rows)


class TestTheAnswer:
    def test_it_has_the_fields_of_the_contract(self, register):
        r = register(name="Dana Scully")

        body = r.json()
        user, workspace, key = User.objects.get(), Workspace.objects.get(), ApiKey.objects.get()
        assert r.status_code == 201
        assert body["user"] == {
            "id": str(user.pk),
            "email": "dana@initech.example",
            "confirmed": False,
        }
        assert body["workspace"] == {
            "id": str(workspace.pk),
            "slug": "dana-scully",
            "name": "Dana Scully",
        }
        assert set(body) == {"user", "workspace", "api_key"}
        assert set(body["api_key"]) == KEY_FIELDS | {"key"}
        text = body["api_key"].pop("key")
        assert is_well_formed(text)
        moment(body["api_key"].pop("created_at"))
        assert body["api_key"] == {
            "id": str(key.pk),
            "prefix": text[:12],
            "last4": text[-4:],
            "name": "Default key",
            "status": "active",
            "scopes": ["detect", "batch", "webhooks", "usage:read"],
            "allowed_cidrs": [],
            "rate_limit_per_minute": 10,
            "rate_limit_per_day": 100,
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

    def test_its_ids_are_uuids_of_version_7(self, register):
        body = register().json()

        assert {UUID(body[part]["id"]).version for part in body} == {7}

    def test_it_makes_the_developer_owner_of_the_workspace(self, register):
        register()

        membership = Membership.objects.get()
        assert membership.role == "owner"
        assert membership.user.email == "dana@initech.example"

    def test_it_names_the_workspace_after_the_mailbox_when_no_name_is_given(self, register):
        r = register()

        assert r.json()["workspace"]["slug"] == "dana"

    def test_it_gives_the_second_of_a_name_another_slug(self, register):
        one = register(email="one@initech.example", name="Dana").json()
        two = register(email="two@initech.example", name="Dana").json()

        assert one["workspace"]["slug"] == "dana"
        assert two["workspace"]["slug"].startswith("dana-")

    def test_it_gives_a_name_without_latin_letters_a_slug(self, register):
        r = register(name="株式会社")

        assert r.status_code == 201
        assert r.json()["workspace"] | {"id": None} == {
            "id": None,
            "slug": "workspace",
            "name": "株式会社",
        }

    def test_it_has_the_older_limit_headers_once(self, register):
        r = register()

        names = [name for name, _ in r.headers.multi_items() if name.startswith("x-ratelimit-")]
        assert len(names) == 3

    def test_it_is_not_to_be_cached(self, register):
        # Nor compressed: its length would say something of a secret beside what others chose.
        assert register().headers["cache-control"] == "no-store, no-transform"


class TestTheKey:
    def test_it_works_at_once(self, gateway, engine, register):
        key = register().json()["api_key"]["key"]

        r = gateway.detect("Hello there, how are you?", key=key)

        assert r.json()["decision"] == "allow"

    def test_it_is_on_trial_until_the_email_is_confirmed(self, gateway, register):
        key = register().json()["api_key"]["key"]

        limits = {
            p["name"]: p["limit"] for p in gateway.get("/v1/limits", key=key).json()["policies"]
        }

        assert limits == {
            "minute": 10,
            "day": 100,
            "workspace_day": 100,
            "workspace_minute": 10,
        }

    def test_the_eleventh_call_of_a_minute_on_trial_is_refused(self, gateway, engine, register):
        key = register().json()["api_key"]["key"]

        *taken, last = [gateway.detect("Good morning.", key=key) for _ in range(11)]

        assert [r.status_code for r in taken] == [200] * 10
        assert refusal(last) == (429, "rate_limited")

    def test_confirming_the_email_lifts_the_trial(self, gateway, register):
        key = register().json()["api_key"]["key"]
        gateway.get("/v1/limits", key=key)

        call_command("confirm_email", "dana@initech.example", verbosity=0)
        policies = gateway.get("/v1/limits", key=key).json()["policies"]

        assert {p["name"]: p["limit"] for p in policies} == {
            "minute": 60,
            "day": 10_000,
            "workspace_day": 10_000,
            "workspace_minute": 300,
        }


class TestTheEmail:
    def test_it_is_kept_in_one_form(self, register):
        r = register(email="Dana@Initech.EXAMPLE")

        assert r.json()["user"]["email"] == "dana@initech.example"
        assert User.objects.get().email == "dana@initech.example"

    @pytest.mark.parametrize("again", ["dana@initech.example", "DANA@Initech.Example"])
    def test_it_can_be_registered_once_in_any_case(self, register, again):
        register()

        r = register(email=again)

        problem(r, 409, "email_taken")
        assert User.objects.count() == Workspace.objects.count() == ApiKey.objects.count() == 1

    def test_a_registration_that_another_overtook_is_refused_and_leaves_nothing(self, register):
        register()
        register(email="other@initech.example")

        # Neither saw the other's row when it looked; the database's constraint decides.
        with patch.object(QuerySet, "exists", autospec=True, return_value=False):
            r = register(name="Late")

        problem(r, 409, "email_taken")
        assert User.objects.count() == Workspace.objects.count() == ApiKey.objects.count() == 2
        assert not Workspace.objects.filter(name="Late").exists()

    def test_a_slug_that_another_took_meanwhile_is_no_reason_to_refuse(self, register):
        register(name="Dana")

        with patch.object(QuerySet, "exists", autospec=True, return_value=False):
            r = register(email="second@initech.example", name="Dana")

        assert r.status_code == 201
        assert r.json()["workspace"]["slug"].startswith("dana-")

    def test_of_two_at_the_same_moment_one_wins(self, register):
        if connection.vendor != "postgresql":
            pytest.skip("SQLite in memory has one writer and no waiting")
        answers = []
        start = threading.Barrier(2)

        def run():
            start.wait()
            answers.append(register())

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(r.status_code for r in answers) == [201, 409]
        assert User.objects.count() == Workspace.objects.count() == ApiKey.objects.count() == 1

    @pytest.mark.parametrize("email", ["", "dana", "dana@", "@initech.example", "a b@c.example", 7])
    def test_it_must_be_one(self, register, email):
        assert set(fields(register(email=email))) == {"email"}

    def test_it_is_refused_when_it_is_too_long_to_keep(self, register):
        email = f"{'a' * 64}@{'b' * 60}.{'c' * 60}.example"

        assert set(fields(register(email=email))) == {"email"}


class TestThePassword:
    @pytest.mark.parametrize(
        ("password", "reason"),
        [
            ("short-one", "at least 10 characters"),
            ("1234567890", "too common"),
            ("84926310574", "entirely numeric"),
            ("password123", "too common"),
            ("good but\x00 for this", "must not hold NUL"),
            ("x" * 129, "more than 128"),
            (1234567890123, "string"),
        ],
    )
    def test_it_is_refused_by_the_rules(self, register, password, reason):
        found = fields(register(password=password))

        assert set(found) == {"password"}
        assert reason in found["password"]
        assert not User.objects.exists()

    @pytest.mark.parametrize(
        "password", ["ten chars!", "x!" * 64, "  spaces are kept  ", "пароль-пароль"]
    )
    def test_it_is_accepted_within_them_and_taken_as_it_is(self, register, password):
        r = register(password=password)

        assert r.status_code == 201
        assert User.objects.get().check_password(password)

    def test_it_is_hashed_with_argon2(self, register):
        register()

        assert User.objects.get().password.startswith("argon2$argon2id$")

    def test_it_is_stored_nowhere_nor_is_the_key(self, register):
        text = register().json()["api_key"]["key"]

        stored = everything_stored()
        assert PASSWORD not in stored
        assert text not in stored
        assert text.split("_")[2] not in stored


class TestBadInput:
    def test_it_names_every_missing_field(self, gateway):
        r = gateway.post("/auth/register", {})

        assert fields(r) == {"email": "field required", "password": "field required"}

    def test_it_lists_the_known_fields_beside_an_unknown_one(self, register):
        r = register(nickname="dee")

        assert fields(r) == {"nickname": "unknown field; known here: email, name, password"}

    @pytest.mark.parametrize("name", ["", "   ", "x" * 101, 5, "nul\x00", "two\nlines", "a\u2028b"])
    def test_it_refuses_a_name_it_could_not_keep(self, register, name):
        assert set(fields(register(name=name))) == {"name"}

    def test_it_refuses_what_is_not_json(self, gateway):
        headers = {"content-type": "application/json"}

        r = gateway.request("POST", "/auth/register", content=b"{'email'", headers=headers)

        problem(r, 400, "invalid_json")

    def test_it_refuses_a_form(self, gateway):
        r = gateway.request("POST", "/auth/register", data={"email": "dana@initech.example"})

        problem(r, 415, "unsupported_media_type")

    @pytest.mark.parametrize("body", [[], "text", 1, None])
    def test_it_refuses_json_that_is_no_object(self, gateway, body):
        r = gateway.request("POST", "/auth/register", json=body)

        assert r.status_code in (415, 422) if body is None else r.status_code == 422

    @pytest.mark.parametrize(
        "body",
        [
            {"email": "secret-mail", "password": "hush"},
            {"email": "secret-mail@initech.example", "password": "hush"},
            {"email": "dana@initech.example", "password": "12345678901234567890"},
            {"email": "dana@initech.example", "password": PASSWORD, "name": "Hush" * 100},
        ],
    )
    def test_it_repeats_nothing_that_was_sent(self, gateway, body):
        r = gateway.post("/auth/register", body)

        assert r.status_code == 422
        assert not [value for value in body.values() if value in r.text]


class TestTheLimit:
    def test_a_sixth_within_an_hour_from_one_address_is_refused(self, register):
        codes = [register(email=f"n{i}@initech.example").status_code for i in range(5)]

        r = register(email="n5@initech.example")

        assert codes == [201] * 5
        body = problem(r, 429, "rate_limited")
        assert 0 < int(r.headers["retry-after"]) <= 3660
        assert r.headers["retry-after"] in body["detail"]
        assert User.objects.count() == 5

    def test_failures_of_validation_do_not_count(self, register):
        for _ in range(7):
            register(password="short")

        assert register().json()["user"]["id"] == str(User.objects.get().pk)

    def test_another_address_is_free(self, register):
        for i in range(6):
            register(email=f"n{i}@initech.example")

        r = register(email="n6@initech.example", client_ip="198.51.100.7")

        assert r.json()["user"]["email"] == "n6@initech.example"

    def test_a_taken_email_counts_so_that_addresses_cannot_be_tried_out(self, register):
        register()

        answers = [refusal(register()) for _ in range(5)]

        assert answers == [(409, "email_taken")] * 4 + [(429, "rate_limited")]

    def test_bad_bodies_are_limited_by_the_address(self, register, settings):
        settings.RATE_LIMIT_PER_MINUTE = 3

        answers = [refusal(register(password="short")) for _ in range(4)]

        assert answers == [(422, "validation_error")] * 3 + [(429, "rate_limited")]


class TestWhatItLeaves:
    def test_it_is_audited(self, register):
        r = register()

        assert set(AuditEvent.objects.values_list("action", flat=True)) == {
            "user.registered",
            "key.created",
        }
        event = AuditEvent.objects.get(action="user.registered")
        body = r.json()
        assert event.actor == "dana@initech.example"
        assert event.target == body["user"]["id"]
        assert str(event.workspace_id) == body["workspace"]["id"]
        assert event.client_ip == "127.0.0.1"
        assert event.request_id == r.headers["x-request-id"]
        assert event.details == {}

    def test_it_tells_customers_nothing(self, register):
        register()

        assert not OutboxEvent.objects.exists()

    def test_it_leaves_nothing_when_the_key_cannot_be_made(self, register):
        with patch.object(services, "issue_key", autospec=True, side_effect=RuntimeError("boom")):
            r = register()

        problem(r, 500, "internal_error")
        assert "boom" not in r.text
        assert not User.objects.exists()
        assert not Workspace.objects.exists()
        assert not AuditEvent.objects.exists()

    @pytest.mark.parametrize("password", [PASSWORD, "hush-hush"])
    def test_it_logs_no_secret(self, register, capsys, caplog, password):
        caplog.set_level("DEBUG")

        body = register(password=password).json()

        output = capsys.readouterr().out + caplog.text
        assert '"route":"/auth/register"' in output.replace(" ", "")
        assert password not in output
        assert "dana@initech" not in output
        if "api_key" in body:
            assert body["api_key"]["key"] not in output
            assert body["api_key"]["key"].split("_")[2][4:] not in output

    def test_an_error_of_ours_logs_no_secret(self, register, capsys, caplog):
        with patch.object(services, "issue_key", autospec=True, side_effect=RuntimeError("boom")):
            register()

        output = capsys.readouterr().out + caplog.text
        assert "RuntimeError: boom" in output
        assert PASSWORD not in output


def test_it_needs_no_key_and_does_not_mind_one(gateway, acme_key):
    body = {"email": "dana@initech.example", "password": PASSWORD}

    r = gateway.post("/auth/register", body, key=acme_key)

    assert r.json()["user"]["email"] == "dana@initech.example"


def test_two_refusals_look_alike_whoever_is_registered(register):
    register()
    register(email="erin@initech.example")

    assert same_but_for_ids(register(), register(email="erin@initech.example"))


class TestTheMail:
    def test_its_link_confirms_the_address(self, register, gateway):
        register()
        [sent] = mail.outbox
        path = re.search(r"https?://[^/\s]+(/accounts/confirm-email/\S+)", sent.body)[1]

        assert sent.to == ["dana@initech.example"]
        assert gateway.get(path).status_code == 200

    def test_an_account_is_there_without_it(self, register, monkeypatch):
        def refuse(*_):
            raise SMTPServerDisconnected

        monkeypatch.setattr(EmailMultiAlternatives, "send", refuse)
        monkeypatch.setattr(EmailMessage, "send", refuse)
        r = register()

        assert r.status_code == 201
        assert User.objects.get().email_confirmed_at is None
