"""POST /api/v1/auth/login, and what stands around it."""

from __future__ import annotations

import json
import time
from datetime import datetime
from itertools import pairwise

import jwt
import pytest
from allauth.mfa.models import Authenticator
from allauth.mfa.recovery_codes.internal.auth import RecoveryCodes
from allauth.mfa.totp.internal.auth import (
    TOTP,
    format_hotp_value,
    generate_totp_secret,
    hotp_value,
)
from django.conf import settings as django_settings

from accounts import lockout
from accounts.hashers import BoundedArgon2
from accounts.models import AuditEvent, User
from accounts.tests.shapes import refusal
from gateway_project.core import errors
from robin.models import RefreshFamily, RefreshToken
from robin.permissions import Permission, Role, permissions_of
from robin.tests.conftest import LOGIN, PASSWORD

ROBIN_UI_ROLES = {"ROLE_ADMIN", "ROLE_USER", "ROLE_READONLY", "ROLE_OPERATOR"}


def attempt(gateway, username, password="wrong password", client_ip="127.0.0.1", **more):
    body = {"username": username, "password": password}
    return gateway.post(LOGIN, body, client_ip=client_ip, **more)


def who(signed_in):
    return signed_in.json()["user"]["email"]


class TestLogin:
    def test_it_answers_in_the_shape_that_the_ui_checks(self, member):
        body = member("ROLE_ADMIN", first_name="Ada").login.json()

        assert set(body) == {"user", "tokens", "permissions"}
        assert set(body["user"]) == {
            *("id", "username", "email", "roles", "firstName", "createdAt", "lastLoginAt"),
            *("isActive", "permissions"),
        }  # no lastName: absent, not null
        assert set(body["user"]["roles"]) <= ROBIN_UI_ROLES
        assert set(body["permissions"]) == set(Permission.values)
        assert len(body["permissions"]) == 17
        assert body["tokens"].pop("accessToken").count(".") == 2
        assert body["tokens"] == {"refreshToken": None, "tokenType": "Bearer", "expiresIn": 1800}
        for field in ("createdAt", "lastLoginAt"):
            assert body["user"][field].endswith("Z")
            datetime.fromisoformat(body["user"][field])

    def test_the_access_token_says_who_and_for_how_long(self, member):
        ada = member("ROLE_READONLY")

        claims = jwt.decode(ada.token, django_settings.JWT_SECRET, algorithms=["HS256"])

        assert claims["sub"] == str(ada.user.pk)
        assert claims["username"] == ada.user.username
        assert claims["roles"] == ["ROLE_READONLY"]
        assert claims["permissions"] == sorted(ada.login.json()["permissions"])
        assert claims["exp"] - claims["iat"] == 30 * 60

    def test_the_refresh_token_is_in_a_cookie_that_scripts_cannot_read(self, member, settings):
        settings.HTTPS_ONLY = True
        cookie = member().login.headers["set-cookie"]

        for part in ("HttpOnly", "Secure", "SameSite=Strict", "Path=/api/v1/auth", "=604800"):
            assert part in cookie
        assert member().login.headers["cache-control"] == "no-store, no-transform"

    def test_only_digests_are_stored(self, member):
        ada = member()

        [row] = RefreshToken.objects.values()
        [family] = RefreshFamily.objects.values()
        stored = str(row) + str(family) + str(list(AuditEvent.objects.values()))
        for secret in (ada.token, ada.cookie, PASSWORD):
            assert secret not in stored

    @pytest.mark.parametrize("spelling", ["{}", "  {} ", "{upper}"])
    def test_the_e_mail_is_taken_as_people_write_it(self, gateway, member, spelling):
        ada = member(signed_in=False)
        name = spelling.format(ada.user.email, upper=ada.user.email.upper())

        assert who(attempt(gateway, name, PASSWORD)) == ada.user.email

    def test_the_user_name_does_as_well(self, gateway, member):
        ada = member(signed_in=False, username="ada")

        assert who(attempt(gateway, "ada", PASSWORD)) == ada.user.email

    def test_a_user_name_that_is_anothers_e_mail_does_not_win(self, gateway, member):
        member(signed_in=False, email="ada@robin.example")
        member(signed_in=False, email="eve@robin.example", username="ada@robin.example2")
        User.objects.filter(email="eve@robin.example").update(username="x")

        r = attempt(gateway, "ada@robin.example", PASSWORD)

        assert who(r) == "ada@robin.example"

    def test_it_is_in_the_audit_trail(self, member):
        ada = member()

        [event] = AuditEvent.objects.filter(action="session.started")
        assert event.actor == ada.user.email
        assert event.client_ip == ada.client_ip

    def test_what_the_ui_sends_along_is_taken(self, gateway, member):
        ada = member(signed_in=False)

        body = {"username": ada.user.email, "password": PASSWORD, "rememberMe": False}

        assert who(gateway.post(LOGIN, body)) == ada.user.email
        assert who(gateway.post(LOGIN + "/", body)) == ada.user.email

    @pytest.mark.parametrize(
        ("body", "status"),
        [
            ("{", 400),
            ("[]", 422),
            ('{"username": "ada"}', 422),
            ('{"username": "ada", "password": ""}', 422),
            ('{"username": "ada", "password": 5}', 422),
            (json.dumps({"username": "ada", "password": "x" * 129}), 422),
            (json.dumps({"username": "a" * 255, "password": "x"}), 422),
            (json.dumps({"username": "a\x00b", "password": "x"}), 422),
        ],
    )
    def test_bad_bodies_are_refused(self, gateway, body, status):
        r = gateway.request(
            "POST", LOGIN, content=body, headers={"Content-Type": "application/json"}
        )

        assert r.status_code == status
        assert r.json()["message"] == r.json()["detail"]

    def test_a_form_is_no_json(self, gateway):
        r = gateway.request("POST", LOGIN, data={"username": "a"})
        assert refusal(r) == (415, "unsupported_media_type")

    def test_a_page_of_another_origin_may_not(self, gateway, member, settings):
        settings.CORS_ALLOWED_ORIGINS = ["https://ui.example"]
        ada = member(signed_in=False)

        def status(origin):
            body = {"username": ada.user.email, "password": PASSWORD}
            return gateway.post(LOGIN, body, headers={"Origin": origin}).status_code

        assert status("https://evil.example") == 403
        assert status("http://[") == 403
        assert status("null") == 403
        assert status("https://ui.example") == 200
        assert status("http://testserver") == 200


class TestRefusals:
    """All of them are the same to whoever asks."""

    @pytest.fixture
    def refused(self, gateway, member):
        member("ROLE_USER", email="ada@robin.example", signed_in=False)
        member(None, email="dev@robin.example", signed_in=False)
        member("ROLE_USER", email="gone@robin.example", signed_in=False, is_active=False)
        unusable = member("ROLE_USER", email="odd@robin.example", signed_in=False).user
        unusable.set_unusable_password()
        unusable.save()
        return {
            "wrong password": ("ada@robin.example", "wrong password"),
            "unknown": ("nobody@robin.example", PASSWORD),
            "no role": ("dev@robin.example", PASSWORD),
            "inactive": ("gone@robin.example", PASSWORD),
            "no password": ("odd@robin.example", PASSWORD),
        }

    def test_they_say_the_same(self, gateway, refused):
        answers = set()
        for n, (name, password) in enumerate(refused.values()):
            r = attempt(gateway, name, password, client_ip=f"10.1.0.{n}")
            body = r.json()
            body.pop("request_id")
            assert "set-cookie" not in r.headers
            answers.add((r.status_code, json.dumps(body)))

        [(status, body)] = answers
        assert status == 401
        assert json.loads(body)["code"] == "sign_in_refused"
        assert json.loads(body)["message"] == errors.SignInRefused.default_detail

    def test_they_cost_the_same_hashes(self, gateway, refused, monkeypatch):
        hashes = []
        for name in ("encode", "verify"):
            original = getattr(BoundedArgon2, name)

            def counted(self, *args, original=original):
                hashes.append(1)
                return original(self, *args)

            monkeypatch.setattr(BoundedArgon2, name, counted)
        costs = {}
        for n, (why, (name, password)) in enumerate(refused.items()):
            hashes.clear()
            attempt(gateway, name, password, client_ip=f"10.1.1.{n}")
            costs[why] = len(hashes)

        assert costs == dict.fromkeys(refused, costs["wrong password"])

    def test_staff_without_a_role_get_a_token_for_staff_only(self, member):
        root = member(None, is_staff=True)

        assert root.login.json()["user"]["roles"] == []
        assert root.login.json()["permissions"] == []
        assert root.get("/api/v1/auth/me").status_code == 200
        assert root.get("/api/v1/users").status_code == 403
        assert root.post("/api/v1/auth/ws-ticket").status_code == 403


class TestGuessing:
    def test_an_address_has_five_attempts_a_minute(self, gateway, member):
        ada = member(signed_in=False)
        codes = [attempt(gateway, f"n{i}@robin.example").status_code for i in range(5)]

        r = attempt(gateway, ada.user.email, PASSWORD)

        assert codes == [401] * 5
        assert r.status_code == 429
        assert int(r.headers["retry-after"]) > 0
        assert "sign in" in r.json()["message"]
        assert attempt(gateway, ada.user.email, PASSWORD, client_ip="10.9.9.9").status_code == 200

    @pytest.fixture
    def patient(self, settings):
        settings.LOGIN_RATE_LIMIT_PER_MINUTE = 1000

    def test_an_account_is_locked_for_the_address_that_guesses(self, gateway, member, patient):
        ada, bob = member(signed_in=False), member(signed_in=False)
        for _ in range(lockout.FAILURES_MAX):
            assert attempt(gateway, ada.user.email).status_code == 401

        r = attempt(gateway, ada.user.email, PASSWORD)

        assert r.status_code == 429
        assert 0 < int(r.headers["retry-after"]) <= lockout.WINDOW_SECONDS + 15
        assert attempt(gateway, ada.user.email.upper(), PASSWORD).status_code == 429
        assert attempt(gateway, bob.user.email, PASSWORD).status_code == 200

    def test_a_stranger_cannot_lock_anybody_out(self, gateway, member, patient):
        ada = member(signed_in=False)
        for _ in range(lockout.FAILURES_MAX + 1):
            attempt(gateway, ada.user.email, client_ip="203.0.113.7")

        r = attempt(gateway, ada.user.email, PASSWORD, client_ip="10.0.0.8")
        assert who(r) == ada.user.email

    def test_a_name_that_nobody_has_is_locked_alike(self, gateway, patient):
        refused = [refusal(attempt(gateway, "x@robin.example")) for _ in range(12)]

        wrong, locked = (401, "sign_in_refused"), (429, "rate_limited")
        assert refused == [wrong] * lockout.FAILURES_MAX + [locked] * 2

    def test_signing_in_rightly_is_never_counted_as_failure(self, gateway, member, patient):
        ada = member(signed_in=False)

        signed_in = {who(attempt(gateway, ada.user.email, PASSWORD)) for _ in range(12)}

        assert signed_in == {ada.user.email}

    def test_an_ipv6_subscriber_is_one_address(self, gateway):
        for i in range(5):
            attempt(gateway, f"n{i}@robin.example", client_ip=f"2001:db8:1:2::{i}")

        r = attempt(gateway, "n@robin.example", client_ip="2001:db8:1:2:ffff::1")
        other = attempt(gateway, "n@robin.example", client_ip="2001:db8:1:3::1")

        assert [refusal(r), refusal(other)] == [(429, "rate_limited"), (401, "sign_in_refused")]


class TestVerifyAndMe:
    def test_verify_says_false_without_a_token(self, gateway):
        r = gateway.get("/api/v1/auth/verify")

        assert (r.status_code, r.json()) == (200, {"valid": False})

    def test_verify_says_true_with_a_good_one_and_false_with_a_bad_one(self, gateway, member):
        ada = member()

        assert ada.get("/api/v1/auth/verify").json() == {"valid": True}
        ada.token += "x"
        r = ada.get("/api/v1/auth/verify")
        assert (r.status_code, r.json()) == (200, {"valid": False})

    def test_me_is_the_bare_user_with_permissions_inside(self, member):
        ada = member("ROLE_OPERATOR")

        r = ada.get("/api/v1/auth/me")

        assert r.status_code == 200
        assert r.json() == ada.login.json()["user"]
        assert "MANAGE_QUEUE" in r.json()["permissions"]
        assert "MANAGE_USERS" not in r.json()["permissions"]


def test_each_role_has_what_the_one_before_has():
    sizes = {role.value: len(permissions_of(role)) for role in Role}

    assert all(a < b for a, b in pairwise(permissions_of(role) for role in Role))
    assert sizes == {"ROLE_READONLY": 4, "ROLE_USER": 9, "ROLE_OPERATOR": 12, "ROLE_ADMIN": 17}


class TestSecondFactor:
    @pytest.fixture
    def ada(self, member):
        ada = member("ROLE_ADMIN", by_hand=True)
        ada.secret = generate_totp_secret()
        TOTP.activate(ada.user, ada.secret)
        ada.recovery = RecoveryCodes.activate(ada.user).get_unused_codes()
        return ada

    def code_of(self, ada):
        return format_hotp_value(hotp_value(ada.secret, int(time.time()) // 30))

    def sign_in(self, gateway, ada, password=PASSWORD, **more):
        body = {"username": ada.user.email, "password": password, **more}
        return gateway.post(LOGIN, body, client_ip="192.0.2.7")

    def test_the_password_alone_is_answered_with_what_is_missing(self, gateway, ada):
        r = self.sign_in(gateway, ada)

        assert (r.status_code, r.json()["code"]) == (401, "second_factor_required")
        assert "behind the password" in r.json()["message"]
        assert "set-cookie" not in r.headers

    def test_its_code_follows_the_password(self, gateway, ada):
        password = f"{PASSWORD} {self.code_of(ada)}"

        assert self.sign_in(gateway, ada, password).status_code == 200
        r = self.sign_in(gateway, ada, password)  # good once
        assert refusal(r) == (401, "sign_in_refused")

    def test_programs_send_it_by_itself(self, gateway, ada):
        assert who(self.sign_in(gateway, ada, otp=self.code_of(ada))) == ada.user.email

    def test_a_recovery_code_is_good_once(self, gateway, ada):
        first, again = [self.sign_in(gateway, ada, otp=ada.recovery[0]) for _ in "12"]

        assert first.status_code == 200
        assert refusal(again) == (401, "sign_in_refused")

    @pytest.mark.parametrize("otp", ["000000", "x", "\u0661" * 6])
    def test_a_wrong_code_is_like_a_wrong_password(self, gateway, ada, otp):
        r = self.sign_in(gateway, ada, otp=otp)

        assert (r.status_code, r.json()["code"]) == (401, "sign_in_refused")

    @pytest.mark.parametrize("has_app", [True, False])
    def test_a_passkey_is_nothing_that_is_typed(self, gateway, ada, has_app):
        Authenticator.objects.create(user=ada.user, type="webauthn", data={"name": "x"})
        if not has_app:
            Authenticator.objects.filter(user=ada.user).exclude(type="webauthn").delete()
        wrong = self.sign_in(gateway, ada, otp="000000")
        right = self.sign_in(gateway, ada, otp=self.code_of(ada))

        assert refusal(wrong) == (401, "sign_in_refused")
        assert right.status_code == (200 if has_app else 401)

    def test_a_right_code_with_a_wrong_password_is_nothing(self, gateway, ada):
        r = self.sign_in(gateway, ada, "wrong password", otp=self.code_of(ada))

        assert (r.status_code, r.json()["code"]) == (401, "sign_in_refused")

    def test_who_has_none_needs_none(self, gateway, member):
        bob = member("ROLE_USER", by_hand=True)

        assert self.sign_in(gateway, bob, otp="").status_code == 200
        assert refusal(self.sign_in(gateway, bob, f"{PASSWORD} 123456")) == (401, "sign_in_refused")
