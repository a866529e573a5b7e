"""Signing in by a provider of OpenID Connect: a real one, small, on the loopback."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from allauth.mfa.models import Authenticator
from cryptography.hazmat.primitives.asymmetric import rsa
from django.conf import settings
from django.core import mail
from django.test import Client

from accounts import services
from accounts.models import ApiKey, AuditEvent, Membership, User

CALLBACK = "/accounts/oidc/sso/login/callback/"


KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)  # a tenth of a second


class Provider:
    """What it says of whoever comes next is in `claims`; `is_down` answers nothing but 500."""

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self.is_down = False
        self.nonsense: dict[str, Any] = {}
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._answer(urlsplit(self.path).path)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._answer(urlsplit(self.path).path)

            def _answer(self, path: str) -> None:
                body = provider.nonsense.get(path, provider.answers(path))
                self.send_response(500 if provider.is_down or body is None else 200)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def answers(self, path: str) -> dict[str, Any] | None:
        jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key()))
        return {
            "/.well-known/openid-configuration": {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "userinfo_endpoint": f"{self.url}/userinfo",
                "jwks_uri": f"{self.url}/keys",
            },
            "/keys": {"keys": [{**jwk, "kid": "1", "use": "sig", "alg": "RS256"}]},
            "/token": {"access_token": "a", "token_type": "Bearer", "id_token": self._token()},
            "/userinfo": self.claims,
        }.get(path)

    def _token(self) -> str:
        now = int(time.time())
        claims = {"iss": self.url, "aud": "gateway", "iat": now, "exp": now + 60, **self.claims}
        return jwt.encode(claims, KEY, algorithm="RS256", headers={"kid": "1"})


@pytest.fixture
def provider(settings):
    made = Provider()
    settings.OIDC_ISSUER, settings.OIDC_NAME = made.url, "Acme SSO"
    settings.SOCIALACCOUNT_PROVIDERS = {
        "openid_connect": {
            "APPS": [
                {
                    "provider_id": "sso",
                    "name": "Acme SSO",
                    "client_id": "gateway",
                    "secret": "a secret",
                    "settings": {"server_url": made.url, "oauth_pkce_enabled": True},
                }
            ]
        }
    }
    yield made
    made.server.shutdown()
    made.server.server_close()


def come_back(client: Client, **more: str) -> Any:
    """Go to the provider by the button, and come back as it would send one back."""
    away = client.post("/accounts/oidc/sso/login/")
    assert away.status_code == 302, away.content
    query = parse_qs(urlsplit(away["Location"]).query)
    assert query["code_challenge_method"] == ["S256"]
    return client.get(CALLBACK, {"code": "c", "state": query["state"][0], **more})


def test_a_newcomer_gets_an_account_and_a_workspace(gateway, provider):
    provider.claims = {"sub": "1", "email": "Eva@Sso.Example", "email_verified": True}
    browser = Client()
    assert "Sign in with Acme SSO" in browser.get("/accounts/login/").content.decode()

    answer = come_back(browser)

    assert (answer.status_code, answer["Location"]) == (302, "/app/")
    user = User.objects.get(email="eva@sso.example")
    assert user.email_confirmed_at is not None
    assert not user.has_usable_password()
    assert Membership.objects.get(user=user).role == "owner"
    assert browser.get("/app/").status_code == 200
    assert AuditEvent.objects.filter(action="person.signed_in", actor=user.email).exists()


def test_who_has_an_account_gets_into_that_one(gateway, provider, alice, acme):
    services.confirm_email(alice, actor=services.Actor("test"))
    provider.claims = {"sub": "2", "email": alice.email, "email_verified": True}
    browser = Client()

    come_back(browser)
    assert browser.get("/app/").context["member"].workspace == acme
    again = Client()
    come_back(again)
    assert User.objects.filter(email=alice.email).count() == 1


def grown_old(browser: Client) -> None:
    session = browser.session
    for record in session["account_authentication_methods"]:
        record["at"] -= settings.ACCOUNT_REAUTHENTICATION_TIMEOUT + 1
    session.save()


def test_who_has_nothing_to_enter_again_makes_a_key_in_an_old_session(gateway, provider):
    provider.claims = {"sub": "6", "email": "eva@sso.example", "email_verified": True}
    browser = Client()
    come_back(browser)
    grown_old(browser)
    form = {"name": "First", "scopes": ["detect"], "allowed_cidrs": ""}
    limits = {"rate_limit_per_minute": 60, "rate_limit_per_day": 10000}

    made = browser.post("/app/keys", {**form, **limits})
    assert ApiKey.objects.filter(name="First").exists()
    assert made.status_code == 302

    Authenticator.objects.create(user=User.objects.get(), type="totp", data={})
    asked = browser.post("/app/keys", {**form, **limits, "name": "Second"})
    assert asked["Location"].startswith("/accounts/2fa/reauthenticate/")
    assert not ApiKey.objects.filter(name="Second").exists()


@pytest.mark.hostile
def test_an_address_that_is_not_vouched_for_takes_nobodys_account(gateway, provider, alice, acme):
    services.confirm_email(alice, actor=services.Actor("test"))
    provider.claims = {"sub": "3", "email": alice.email, "email_verified": False}
    browser = Client()

    come_back(browser)

    assert browser.get("/app/").status_code == 302
    assert not alice.socialaccount_set.exists()


@pytest.mark.parametrize("chars", [0, 151, 254, 320])
def test_who_comes_without_an_address_that_we_keep_is_asked_for_one(gateway, provider, chars):
    host = ".".join(["b" * 50] * 2)
    named = {"email": f"{'a' * (chars - 106)}@{host}.com", "email_verified": True} if chars else {}
    provider.claims = {"sub": "5", **named}
    browser = Client()

    asked = come_back(browser)
    page = browser.get(asked["Location"])
    answer = browser.post(asked["Location"], {"email": "Eva@Sso.Example"})

    assert "One thing is missing" in page.content.decode()
    assert (answer.status_code, answer["Location"]) == (302, "/accounts/confirm-email/")
    assert [message.to for message in mail.outbox] == [["eva@sso.example"]]
    user = User.objects.get()
    assert (user.email, user.username) == ("eva@sso.example", "eva@sso.example")
    assert user.email_confirmed_at is None


@pytest.mark.hostile
def test_a_forged_state_signs_nobody_in(gateway, provider):
    provider.claims = {"sub": "4", "email": "eva@sso.example", "email_verified": True}
    browser = Client()

    answer = come_back(browser, state="forged")

    assert b"Signing in did not work" in answer.content
    assert not User.objects.filter(email="eva@sso.example").exists()


def test_a_provider_that_is_down_is_reported(gateway, provider):
    browser = Client()
    away = browser.post("/accounts/oidc/sso/login/")
    state = parse_qs(urlsplit(away["Location"]).query)["state"][0]
    provider.is_down = True

    answer = browser.get(CALLBACK, {"code": "c", "state": state})

    assert b"Signing in did not work" in answer.content


CONFIGURATION = "/.well-known/openid-configuration"


@pytest.mark.parametrize("odd", [[], {}, None, "x", 1, {"access_token": []}, {"sub": {}}])
@pytest.mark.parametrize("path", [CONFIGURATION, "/token", "/userinfo", "/keys"])
def test_a_provider_that_says_nonsense_signs_nobody_in_and_breaks_nothing(
    gateway, provider, path, odd
):
    provider.claims = {"sub": "1", "email": "eva@sso.example", "email_verified": True}
    browser = Client()
    browser.raise_request_exception = False
    away = browser.post("/accounts/oidc/sso/login/")
    query = parse_qs(urlsplit(away["Location"]).query)
    provider.nonsense = {path: odd}

    back = browser.get(CALLBACK, {"code": "c", "state": query["state"][0]})
    begun = Client(raise_request_exception=False).post("/accounts/oidc/sso/login/")

    assert {back.status_code, begun.status_code} <= {200, 302, 401, 502}
    if path == CONFIGURATION:
        assert begun.status_code == 502
        assert b"Try again in a minute" in begun.content
    else:
        assert begun.status_code == 302


def test_without_the_setting_there_is_no_button_and_no_way(gateway):
    assert b"single sign-on" not in Client().get("/accounts/login/").content
    assert Client().get("/accounts/oidc/sso/login/").status_code == 404
