"""The pages for developers: who may see them, and the way from registering to leaving."""

from __future__ import annotations

import re
import time
from importlib import import_module
from urllib.parse import urlencode
from uuid import uuid4

import pytest
import time_machine
from allauth.mfa.models import Authenticator
from allauth.mfa.totp.internal.auth import format_hotp_value, hotp_value
from allauth.usersessions.models import UserSession
from django.conf import settings
from django.core import mail
from django.db import IntegrityError
from django.urls import URLPattern, get_resolver
from django.utils import timezone

from accounts import moderation, services
from accounts.addresses import CHARS_MAX
from accounts.hashers import BoundedArgon2
from accounts.models import ApiKey, AuditEvent, User, Workspace
from accounts.tests.shapes import refusal
from conftest import forget_everything
from gateway_project.core import encryption
from gateway_project.tests.test_admin import Browser, value_of

EMAIL, PASSWORD = "dana@initech.example", "a password of enough words"
APP = sorted(
    f"/{pattern.pattern}"
    for resolver in get_resolver().url_patterns
    for pattern in getattr(resolver, "url_patterns", [])
    if isinstance(pattern, URLPattern) and str(pattern.pattern).startswith("app/")
)


def address_of(chars):
    """An address of so many characters."""
    host = ".".join(["b" * 50] * ((chars - 6) // 51))
    return f"{'a' * (chars - len(host) - 5)}@{host}.com"


UNDELIVERABLE = [
    "jürgen@new.example",
    "\uff41da@new.example",
    "用户@new.example",
    "a\u200bb@new.example",
    *map(address_of, (CHARS_MAX + 1, 254, 255, 320)),  # 320 is what Django's own fields take
]


def addresses_of():
    """By user: the addresses that are theirs."""
    return {
        user.email: sorted(user.emailaddress_set.values_list("email", flat=True))
        for user in User.objects.all()
    }


def link_in(message):
    return re.search(r"http://testserver(/\S+)|https?://[^/\s]+(/\S+)", message.body).group(0)


def path_of(url):
    return re.sub(r"^https?://[^/]+", "", url)


@pytest.fixture
def registered(gateway):
    """A browser whose person has registered and not confirmed yet."""
    browser = Browser(gateway)
    r = browser.post("/accounts/signup/", email=EMAIL, password1=PASSWORD)
    assert r.headers["location"] == "/app/"
    return browser


@pytest.fixture
def signed_in(registered, gateway):
    registered.post("/accounts/logout/")
    services.confirm_email(User.objects.get(email=EMAIL), actor=services.Actor("test"))
    browser = Browser(gateway)
    assert sign_in(browser).headers["location"] == "/app/settings"
    return browser


def sign_in(browser, email=EMAIL, password=PASSWORD):
    return browser.post("/accounts/login/?next=/app/settings", login=email, password=password)


class TestWhoMaySee:
    def test_a_stranger_is_led_to_the_form(self, gateway, settings):
        settings.RATE_LIMIT_ENABLED = False
        for template in APP:
            if "/join/" in template:
                continue
            path = re.sub("<uuid:[^>]+>", str(uuid4()), template)
            path = re.sub("<(int|str):[^>]+>", "1", path)
            r = Browser(gateway)._request("GET", path)
            if not r.headers["location"].startswith("/accounts/login/"):  # to the page of its form
                path = r.headers["location"]
                r = Browser(gateway)._request("GET", path)

            assert r.status_code == 302, template
            assert r.headers["location"].startswith(f"/accounts/login/?next={path}"), template


class TestRegistering:
    def test_it_makes_what_the_api_makes_but_no_key(self, registered):
        user = User.objects.get(email=EMAIL)
        workspace = Workspace.objects.get(members=user)

        assert user.email_confirmed_at is None
        assert not workspace.is_confirmed
        assert user.memberships.get().role == "owner"
        assert not ApiKey.objects.filter(workspace=workspace).exists()
        assert AuditEvent.objects.filter(action="user.registered", actor=EMAIL).exists()

    def test_the_mail_holds_the_link_that_confirms(self, registered):
        [message] = mail.outbox
        page = path_of(link_in(message))

        registered.post(page)

        user = User.objects.get(email=EMAIL)
        assert user.email_confirmed_at is not None
        assert Workspace.objects.get(members=user).is_confirmed

    def test_a_known_address_gets_the_same_page_and_another_mail(self, gateway, alice):
        mail.outbox.clear()

        r = Browser(gateway).post("/accounts/signup/", email=alice.email, password1=PASSWORD)

        assert r.headers["location"] == "/accounts/confirm-email/"
        assert User.objects.filter(email=alice.email).count() == 1
        assert len(mail.outbox) == 1
        assert "already" in mail.outbox[0].body

    def test_a_weak_password_is_named(self, gateway):
        r = Browser(gateway).post("/accounts/signup/", email=EMAIL, password1="password")

        assert r.status_code == 200
        assert "too short" in r.text
        assert not User.objects.filter(email=EMAIL).exists()

    def test_the_sixth_in_a_minute_is_a_page_of_429(self, gateway):
        tries = [
            Browser(gateway).post("/accounts/signup/", email=f"p{i}@x.example", password1="short")
            for i in range(6)
        ]

        assert [r.status_code for r in tries] == [200] * 5 + [429]
        assert "Too many requests" in tries[5].text
        wait = int(tries[5].headers["retry-after"])
        assert 1 <= wait <= 72  # of a minute's five, one is free a fifth into the next
        assert f"Try again in {wait} seconds" in tries[5].text


class TestUniformAnswers:
    """What a stranger could measure: each hash takes far longer than all the rest."""

    @pytest.fixture
    def hashes(self, monkeypatch):
        done = []
        for name in ("encode", "verify"):
            method = getattr(BoundedArgon2, name)

            def counted(self, *args, method=method):
                done.append(method)
                return method(self, *args)

            monkeypatch.setattr(BoundedArgon2, name, counted)
        return done

    def test_signing_in_hashes_as_often_for_a_name_that_nobody_has(
        self, signed_in, gateway, hashes
    ):
        known = sign_in(Browser(gateway), password="wrong")
        count = len(hashes)
        hashes.clear()
        unknown = sign_in(Browser(gateway), "nobody@x.example", "wrong")

        assert len(hashes) == count > 0
        assert known.status_code == unknown.status_code == 200

    def test_registering_hashes_as_often_for_a_known_address(self, gateway, alice, hashes):
        Browser(gateway).post("/accounts/signup/", email=EMAIL, password1=PASSWORD)
        count = len(hashes)
        hashes.clear()
        Browser(gateway).post("/accounts/signup/", email=alice.email, password1=PASSWORD)

        assert len(hashes) == count > 0


class TestSigningIn:
    def test_not_before_the_address_is_confirmed(self, registered, gateway):
        r = sign_in(Browser(gateway))

        assert r.headers["location"] == "/accounts/confirm-email/"

    def test_who_registered_over_the_api_signs_in_here(self, gateway, alice):
        alice.set_password(PASSWORD)
        alice.save()
        services.confirm_email(alice, actor=services.Actor("test"))

        assert sign_in(Browser(gateway), alice.email).headers["location"] == "/app/settings"

    def test_the_pair_is_locked_after_ten_failures_and_nobody_else(
        self, signed_in, gateway, settings
    ):
        settings.LOGIN_RATE_LIMIT_PER_MINUTE = 1000
        attacker = "198.51.100.7"
        for _ in range(10):
            assert sign_in(Browser(gateway, attacker), password="wrong").status_code == 200

        locked = sign_in(Browser(gateway, attacker))
        assert locked.status_code == 429
        assert f"Try again in {locked.headers['retry-after']} seconds" in locked.text
        assert sign_in(Browser(gateway)).status_code == 302

    def test_a_second_factor_is_asked_for(self, signed_in, gateway):
        activate_totp(signed_in)
        browser = Browser(gateway)
        r = sign_in(browser)

        assert r.headers["location"].startswith("/accounts/2fa/authenticate/")
        assert browser._request("GET", "/app/settings").status_code == 302


class TestSecondFactor:
    def test_its_secrets_are_encrypted_at_rest(self, signed_in):
        secret = activate_totp(signed_in)

        totp, codes = Authenticator.objects.order_by("-type")
        assert secret not in str(totp.data)
        assert encryption.decrypt(totp.data["secret"]) == secret
        assert encryption.decrypt(codes.data["seed"])

    def test_codes_cannot_be_tried_for_long(self, signed_in, gateway):
        secret = activate_totp(signed_in)
        browser = Browser(gateway)
        sign_in(browser)
        for _ in range(5):
            r = browser.post("/accounts/2fa/authenticate/", code="000000")
            assert "This code is wrong" in r.text

        r = browser.post("/accounts/2fa/authenticate/", code=code_of(secret, steps_ahead=1))

        assert "Too many wrong codes. Wait five minutes" in r.text
        assert browser._request("GET", "/app/settings").status_code == 302

    def test_a_recovery_code_signs_in_once(self, signed_in, gateway):
        activate_totp(signed_in)
        codes = re.findall(
            r"\b[0-9a-z]{8}\b", signed_in.get("/accounts/2fa/recovery-codes/download/").text
        )
        first, second = Browser(gateway), Browser(gateway)
        for browser in (first, second):
            sign_in(browser)
            browser.post("/accounts/2fa/authenticate/", code=codes[0])

        once, again = (one._request("GET", "/app/settings") for one in (first, second))
        assert EMAIL in once.text
        assert again.headers["location"].startswith("/accounts/login/")


def activate_totp(browser):
    """The secret of the app that the person of `browser` now has."""
    enter_password_again(browser)
    page = browser.get("/accounts/2fa/totp/activate/")
    secret = re.search(r'id="secret">([A-Z2-7]+)<', page.text)[1]
    # Not `post`: each look at the form is a new secret.
    form = {
        "csrfmiddlewaretoken": value_of(page.text, "csrfmiddlewaretoken"),
        "code": code_of(secret),
    }
    done = browser._request("POST", "/accounts/2fa/totp/activate/", **as_form(form))
    assert done.status_code == 302, done.text
    return secret


def enter_password_again(browser):
    browser.post("/accounts/reauthenticate/", password=PASSWORD)


def as_form(fields):
    return {
        "content": urlencode(fields),
        "headers": {"Content-Type": "application/x-www-form-urlencoded"},
    }


def code_of(secret, steps_ahead=0):
    """What an app shows. No code is taken twice, but the one of the next half minute is."""
    return format_hotp_value(hotp_value(secret, int(time.time()) // 30 + steps_ahead))


class TestForgottenPassword:
    def test_the_link_sets_a_new_one_and_ends_other_sessions(self, signed_in, gateway):
        mail.outbox.clear()
        browser = Browser(gateway)
        browser.post("/accounts/password/reset/", email=EMAIL)
        form = browser._request("GET", path_of(link_in(mail.outbox[0]))).headers["location"]
        r = browser.post(form, password1="quite another one", password2="quite another one")
        assert r.status_code == 302, r.text

        again = sign_in(Browser(gateway), password="quite another one")
        other = signed_in._request("GET", "/app/settings")
        assert again.headers["location"] == "/app/settings"
        assert other.headers["location"].startswith("/accounts/login/")

    def test_an_unknown_address_gets_the_same_page(self, gateway):
        r = Browser(gateway).post("/accounts/password/reset/", email="nobody@x.example")

        assert r.headers["location"] == "/accounts/password/reset/done/"


class TestSettings:
    def test_the_name(self, signed_in):
        signed_in.post("/app/settings", first_name="Dana")

        assert User.objects.get(email=EMAIL).first_name == "Dana"

    @pytest.mark.parametrize(
        "path",
        [
            "/app/settings",
            "/accounts/email/",
            "/accounts/password/change/",
            "/accounts/2fa/",
            "/accounts/sessions/",
        ],
    )
    def test_its_pages_have_no_inline_script_or_style(self, signed_in, path):
        r = signed_in.get(path)

        assert r.status_code == 200
        assert "unsafe" not in r.headers["content-security-policy"]
        assert not re.findall(r"<script(?! src=)|<style| style=| on[a-z]+=", r.text)

    def test_a_session_is_ended_from_another(self, signed_in, gateway):
        other = Browser(gateway)
        sign_in(other)
        page = signed_in.get("/accounts/sessions/").text
        [session] = re.findall(r"/app/settings/sessions/\d+", page)

        token = value_of(page, "csrfmiddlewaretoken")
        signed_in._request("POST", session, **as_form({"csrfmiddlewaretoken": token}))

        assert other._request("GET", "/app/settings").status_code == 302
        assert signed_in._request("GET", "/app/settings").status_code == 200
        assert AuditEvent.objects.filter(action="person.session_ended").exists()

    def test_who_leaves_is_in_the_trail_of_their_workspace(self, signed_in):
        workspace = Workspace.objects.get(members__email=EMAIL)
        left = AuditEvent.objects.filter(workspace=workspace, action="person.signed_out")
        before = left.count()
        signed_in.post("/accounts/logout/")
        signed_in.post("/accounts/logout/")  # nobody by then

        assert left.count() == before + 1
        row = left.latest("id")
        assert (row.actor, row.client_ip) == (EMAIL, "127.0.0.1")

    def test_another_persons_session_is_not_there(self, signed_in, gateway, alice):
        services.confirm_email(alice, actor=services.Actor("test"))
        stranger = Browser(gateway)
        sign_in(stranger, alice.email, "a good long password")
        session = UserSession.objects.get(user=alice)
        token = value_of(signed_in.get("/app/settings").text, "csrfmiddlewaretoken")

        path = f"/app/settings/sessions/{session.pk}"
        r = signed_in._request("POST", path, **as_form({"csrfmiddlewaretoken": token}))

        assert refusal(r) == (404, "not_found")
        assert stranger._request("GET", "/app/settings").status_code == 200

    def test_a_new_password_ends_the_other_sessions(self, signed_in, gateway):
        other = Browser(gateway)
        sign_in(other)

        form = {"oldpassword": PASSWORD, "password1": "quite another one"}
        mail.outbox.clear()
        r = signed_in.post("/accounts/password/change/", password2="quite another one", **form)

        assert r.status_code == 302, r.text
        [notice] = mail.outbox
        assert "password has been changed" in notice.body
        assert "127.0.0.1" in notice.body
        assert signed_in._request("GET", "/app/settings").status_code == 200
        assert other._request("GET", "/app/settings").status_code == 302

    def test_another_address_counts_once_it_is_confirmed(self, signed_in, gateway):
        mail.outbox.clear()
        enter_password_again(signed_in)
        signed_in.post("/accounts/email/", email="dana@new.example", action_add="")
        assert User.objects.filter(email=EMAIL).exists()

        link = next(path_of(link_in(m)) for m in mail.outbox if m.to == ["dana@new.example"])
        signed_in.post(link)

        assert sign_in(Browser(gateway), "dana@new.example").status_code == 302
        assert not User.objects.filter(email=EMAIL).exists()
        entry = AuditEvent.objects.get(action="person.email_changed")
        assert entry.details["changes"] == {"email": [EMAIL, "dana@new.example"]}

    def test_whoever_reads_the_old_address_can_stop_it(self, signed_in, gateway):
        mail.outbox.clear()
        enter_password_again(signed_in)
        signed_in.post("/accounts/email/", email="thief@new.example", action_add="")
        link = next(path_of(link_in(m)) for m in mail.outbox if m.to == ["thief@new.example"])
        [message] = [m for m in mail.outbox if m.to == [EMAIL]]
        assert "thief@new.example" in message.body
        assert "A new password stops it" in message.body

        owner = Browser(gateway)
        owner.post("/accounts/password/reset/", email=EMAIL)
        reset = path_of(link_in(mail.outbox[-1]))
        page = owner._request("GET", reset).headers["location"]
        owner.post(page, password1="another good password", password2="another good password")
        signed_in.post(link)

        assert addresses_of() == {EMAIL: [EMAIL]}
        assert sign_in(Browser(gateway), EMAIL, "another good password").status_code == 302

    def test_another_address_that_went_elsewhere_meanwhile_changes_nothing(
        self, signed_in, gateway
    ):
        mail.outbox.clear()
        enter_password_again(signed_in)
        signed_in.post("/accounts/email/", email="dana@new.example", action_add="")
        link = next(path_of(link_in(m)) for m in mail.outbox if m.to == ["dana@new.example"])
        other = services.register("dana@new.example", "a good long password").user
        before = addresses_of()

        r = signed_in.post(link)

        assert r.status_code in (200, 302)
        assert "belongs to another account by now" in signed_in.get("/app/settings").text
        assert addresses_of() == {**before, EMAIL: [EMAIL]}
        assert User.objects.get(email="dana@new.example") == other
        assert sign_in(Browser(gateway)).status_code == 302

    def test_half_a_change_of_the_address_is_none(self, signed_in, monkeypatch):
        mail.outbox.clear()
        enter_password_again(signed_in)
        signed_in.post("/accounts/email/", email="dana@new.example", action_add="")
        link = next(path_of(link_in(m)) for m in mail.outbox if m.to == ["dana@new.example"])
        before = addresses_of()

        def fail(*_, **__):
            raise IntegrityError("somebody was quicker")

        monkeypatch.setattr(services, "confirm_email", fail)
        signed_in.post(link)

        assert addresses_of() == {**before, EMAIL: [EMAIL]}

    @pytest.mark.parametrize("address", UNDELIVERABLE)
    def test_no_address_that_cannot_be_delivered_to(self, signed_in, gateway, address):
        enter_password_again(signed_in)
        mail.outbox.clear()
        changed = signed_in.post("/accounts/email/", email=address, action_add="")
        invited = signed_in.post("/app/people", email=address, role="member")
        registered = Browser(gateway).post(
            "/accounts/signup/", email=address, password1="a good long password"
        )
        by_api = gateway.post(
            "/auth/register", {"email": address, "password": "a good long password"}
        )

        for page in (changed, invited, registered):
            assert page.status_code == 200
            assert "This address has " in page.text or "Enter a valid e" in page.text
        assert refusal(by_api) == (422, "validation_error")
        assert mail.outbox == []
        assert User.objects.count() == 1

    def test_the_longest_address_that_is_kept(self, signed_in, gateway):
        first, second = address_of(CHARS_MAX), address_of(CHARS_MAX - 1)
        newcomer = Browser(gateway)
        newcomer.post("/accounts/signup/", email=first, password1="a good long password")
        enter_password_again(signed_in)
        signed_in.post("/accounts/email/", email=second, action_add="")
        for browser, email in ((newcomer, first), (signed_in, second)):
            browser.post(next(path_of(link_in(m)) for m in mail.outbox if m.to == [email]))

        assert set(User.objects.values_list("username", flat=True)) == {first, second}

    def test_deleting_wants_the_password_again(self, signed_in):
        r = signed_in._request("GET", "/app/settings/delete")

        assert r.status_code == 302
        assert r.headers["location"].startswith("/accounts/reauthenticate/")

    def test_deleting_wants_the_address_typed(self, signed_in):
        enter_password_again(signed_in)

        r = signed_in.post("/app/settings/delete", typed="somebody@else.example")

        assert r.status_code == 200
        assert EMAIL in r.text
        assert User.objects.filter(email=EMAIL).exists()

    def test_deleting_takes_the_keys_with_it(self, signed_in, gateway):
        workspace = Workspace.objects.get(members__email=EMAIL)
        _, key = services.issue_key(workspace, actor=services.Actor("test"))
        assert gateway.get("/v1/limits", key=key).status_code == 200
        enter_password_again(signed_in)

        signed_in.post("/app/settings/delete", typed=EMAIL)
        refused = gateway.get("/v1/limits", key=key)
        in_a_week(gateway)

        assert refusal(refused) == (403, "workspace_suspended")
        assert not User.objects.filter(email=EMAIL).exists()
        assert gateway.get("/v1/limits", key=key).status_code == 401
        assert AuditEvent.objects.filter(action="user.deleted").exists()

    def test_within_seven_days_it_can_be_undone(self, signed_in, gateway):
        workspace = Workspace.objects.get(members__email=EMAIL)
        _, key = services.issue_key(workspace, actor=services.Actor("test"))
        enter_password_again(signed_in)
        signed_in.post("/app/settings/delete", typed=EMAIL)
        page = signed_in.get("/app/settings/delete")
        [message] = [m for m in mail.outbox if "deleted in seven days" in m.subject]

        assert "Undo: keep the account" in page.text
        assert "/app/settings/delete" in message.body
        assert "Your account is deleted on" in signed_in.get("/app/keys").text
        undo(signed_in)
        in_a_week(gateway)

        assert User.objects.filter(email=EMAIL).exists()
        assert gateway.get("/v1/limits", key=key).status_code == 200

    def test_twice_is_once_and_puts_nothing_off(self, signed_in):
        enter_password_again(signed_in)
        signed_in.post("/app/settings/delete", typed=EMAIL)
        first = User.objects.get(email=EMAIL).deletes_at
        signed_in.post("/app/settings/delete", typed=EMAIL)

        assert User.objects.get(email=EMAIL).deletes_at == first
        assert AuditEvent.objects.filter(action="user.deletion_asked").count() == 1

    def test_what_operators_suspended_stays_so(self, signed_in):
        workspace = Workspace.objects.get(members__email=EMAIL)
        moderation.suspend_workspace(workspace, actor=services.Actor("root"))
        enter_password_again(signed_in)
        signed_in.post("/app/settings/delete", typed=EMAIL)
        undo(signed_in)

        workspace.refresh_from_db()
        assert workspace.suspended_at is not None
        assert workspace.deletes_at is None

    def test_a_workspace_with_another_owner_stays(self, signed_in, gateway, alice):
        workspace = Workspace.objects.get(members__email=EMAIL)
        workspace.memberships.create(user=alice, role="owner")
        enter_password_again(signed_in)

        signed_in.post("/app/settings/delete", typed=EMAIL)
        suspended = Workspace.objects.get(pk=workspace.pk).suspended_at
        in_a_week(gateway)

        assert suspended is None
        assert not User.objects.filter(email=EMAIL).exists()
        assert Workspace.objects.filter(pk=workspace.pk).exists()

    def test_one_that_got_another_owner_meanwhile_works_again(self, signed_in, gateway, alice):
        workspace = Workspace.objects.get(members__email=EMAIL)
        enter_password_again(signed_in)
        signed_in.post("/app/settings/delete", typed=EMAIL)
        workspace.memberships.create(user=alice, role="owner")
        in_a_week(gateway)

        found = Workspace.objects.get(pk=workspace.pk)
        assert (found.suspended_at, found.deletes_at) == (None, None)


def undo(browser):
    """By the button of the page."""
    token = value_of(browser.get("/app/settings/delete").text, "csrfmiddlewaretoken")
    browser._request(
        "POST",
        "/app/settings/delete/undo",
        content=urlencode({"csrfmiddlewaretoken": token}),
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )


def in_a_week(gateway):
    """The task finds what is due by then."""
    with time_machine.travel(timezone.now() + services.DELETION_WAITS, tick=False):
        services.carry_out_deletions()
    forget_everything(gateway)


class TestKeys:
    FORM = {
        "name": "First",
        "scopes": ["detect"],
        "allowed_cidrs": "",
        "rate_limit_per_minute": 60,
        "rate_limit_per_day": 10000,
    }

    def made(self, browser, **changes):
        made = browser.post("/app/keys", **{**self.FORM, **changes})
        page = browser.get(made.headers["location"]).text
        return re.search(r'id="made-key"[^>]*>([^<]+)<', page).group(1)

    def test_one_is_made_shown_once_and_works(self, signed_in, gateway, engine):
        text = self.made(signed_in)

        assert gateway.detect("Good morning.", key=text).status_code == 200
        assert text not in signed_in.get("/app/keys").text
        assert AuditEvent.objects.filter(action="key.created", actor=EMAIL).exists()

    def test_an_old_session_enters_the_password_and_loses_nothing(self, signed_in):
        store = import_module(settings.SESSION_ENGINE).SessionStore
        session = store(signed_in.cookies[settings.SESSION_COOKIE_NAME])
        for record in session["account_authentication_methods"]:
            record["at"] -= settings.ACCOUNT_REAUTHENTICATION_TIMEOUT + 1
        session.save()

        asked = signed_in.post("/app/keys", **{**self.FORM, "name": "Kept"})
        assert asked.headers["location"] == "/accounts/reauthenticate/?next=%2Fapp%2Fkeys"
        assert not ApiKey.objects.filter(name="Kept").exists()
        made = signed_in.post(asked.headers["location"], password=PASSWORD)
        made = signed_in.get(made.headers["location"])

        assert re.search(r'id="made-key"[^>]*>(gw_live_[^<]+)<', made.text)
        assert ApiKey.objects.get(name="Kept").workspace.members.get().email == EMAIL

    @pytest.mark.parametrize(
        "changes",
        [{"allowed_cidrs": "10.0.0.1/8"}, {"rate_limit_per_minute": 61}, {"name": ""}],
    )
    def test_what_is_wrong_is_named_and_makes_none(self, signed_in, changes):
        r = signed_in.post("/app/keys", **{**self.FORM, **changes})

        assert 'class="errorlist"' in r.text
        assert not ApiKey.objects.filter(workspace__members__email=EMAIL).exists()

    def test_rotating_gives_a_successor_and_the_old_one_its_grace(self, signed_in, gateway):
        old = self.made(signed_in)
        row = ApiKey.objects.get(workspace__members__email=EMAIL)
        signed_in.get(f"/app/keys/{row.pk}")

        done = act(signed_in, row, "rotate", grace_seconds="0")
        page = signed_in.get(done.headers["location"]).text

        new = re.search(r'id="made-key"[^>]*>([^<]+)<', page).group(1)
        assert gateway.get("/v1/limits", key=new).status_code == 200
        assert refusal(gateway.get("/v1/limits", key=old)) == (401, "invalid_api_key")

    def test_revoking_wants_its_name_typed(self, signed_in, gateway):
        text = self.made(signed_in)
        row = ApiKey.objects.get(workspace__members__email=EMAIL)

        wrong = act(signed_in, row, "revoke", name="Second")
        assert "This is not its name" in wrong.text
        assert gateway.get("/v1/limits", key=text).status_code == 200

        assert act(signed_in, row, "revoke", name="First").status_code == 302
        assert gateway.get("/v1/limits", key=text).status_code == 401

    def test_another_workspaces_key_is_not_there(self, signed_in, acme_key):
        assert refusal(signed_in.get(f"/app/keys/{acme_key.row.pk}")) == (404, "not_found")
        assert refusal(act(signed_in, acme_key.row, "revoke", name="x")) == (404, "not_found")

    def test_a_viewer_reads_only(self, signed_in):
        self.made(signed_in)
        row = ApiKey.objects.get(workspace__members__email=EMAIL)
        row.workspace.memberships.update(role="viewer")

        assert signed_in.get(f"/app/keys/{row.pk}").status_code == 200
        assert refusal(act(signed_in, row, "revoke", name="First")) == (403, "permission_denied")
        r = act(signed_in, row, "rotate", grace_seconds="0")
        assert refusal(r) == (403, "permission_denied")


def act(browser, row, what, **fields):
    token = value_of(browser.get("/app/settings").text, "csrfmiddlewaretoken")
    form = {"csrfmiddlewaretoken": token, **fields}
    return browser._request("POST", f"/app/keys/{row.pk}/{what}", **as_form(form))


class TestOverview:
    @pytest.mark.parametrize("range_", ["1h", "24h", "7d", "30d", "nonsense"])
    def test_it_shows_what_the_keys_did(self, signed_in, gateway, engine, range_):
        text = TestKeys().made(signed_in)
        gateway.detect("Good morning.", key=text)
        gateway.flush_usage()

        page = signed_in.get(f"/app/?range={range_}").text

        assert "1 requests, 0 flagged, 0 errors" in page
        assert "First steps" not in page

    def test_it_says_what_to_do_first(self, signed_in):
        assert "Make a key" in signed_in.get("/app/").text

    def test_a_person_without_a_workspace_sees_why(self, signed_in):
        User.objects.get(email=EMAIL).memberships.all().delete()

        assert f"{EMAIL} is in none" in signed_in.get("/app/").text
