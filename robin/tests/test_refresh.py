"""POST /api/v1/auth/refresh and /logout: families, reuse, and how a session ends."""

from __future__ import annotations

from datetime import timedelta

import pytest
import time_machine
from django.db import connection
from django.utils import timezone

from accounts.models import AuditEvent
from accounts.services import Actor
from accounts.tests.shapes import refusal
from robin.access import sessions
from robin.models import RefreshFamily, RefreshToken, RobinAccess
from robin.tests.conftest import REFRESH, refresh

pytestmark = pytest.mark.usefixtures("host_is_ahead")  # tokens are in the stores' time

ME = "/api/v1/auth/me"


def is_in(person) -> bool:
    return person.get(ME).status_code == 200


class TestRefresh:
    def test_it_gives_a_new_access_token_and_another_cookie(self, gateway, member):
        ada = member()

        r = ada.refresh()

        assert r.status_code == 200
        assert set(r.json()) == {"accessToken", "tokenType", "expiresIn"}
        assert r.json()["expiresIn"] == 1800
        assert r.cookies["refreshToken"] != ada.cookie
        ada.token = r.json()["accessToken"]
        assert is_in(ada)

    def test_the_chain_goes_on(self, gateway, member):
        cookie = member().cookie
        for _ in range(4):
            cookie = refresh(gateway, cookie).cookies["refreshToken"]

        assert RefreshFamily.objects.count() == 1
        assert RefreshToken.objects.count() == 5

    def test_without_a_cookie_it_is_no_401(self, gateway):
        # Robin UI asks before its first page; a 401 made it forget which page that was.
        r = gateway.post(REFRESH, {})

        assert (r.status_code, r.json()["code"]) == (400, "no_session")

    @pytest.mark.parametrize("cookie", ["x", "a.b.c", "%C3%A9", "eyJhbGciOiJub25lIn0.e30."])
    def test_nonsense_is_401(self, gateway, cookie):
        r = refresh(gateway, cookie)

        assert (r.status_code, r.json()["code"]) == (401, "invalid_token")

    def test_an_access_token_is_no_refresh_token(self, gateway, member):
        assert refusal(refresh(gateway, member().token)) == (401, "invalid_token")

    def test_a_refresh_token_is_no_access_token(self, member):
        ada = member()
        ada.token = ada.cookie

        assert refusal(ada.get(ME)) == (401, "invalid_token")

    def test_it_ends_after_seven_days_of_rest(self, gateway, member):
        ada = member()

        with time_machine.travel(timezone.now() + timedelta(days=7, seconds=1), tick=True):
            assert refusal(ada.refresh()) == (401, "invalid_token")

    def test_each_refresh_starts_the_seven_days_anew(self, gateway, member):
        ada = member()
        now = timezone.now()
        with time_machine.travel(now + timedelta(days=6), tick=True):
            cookie = ada.refresh().cookies["refreshToken"]
        with time_machine.travel(now + timedelta(days=12), tick=True):
            assert refresh(gateway, cookie).json()["accessToken"]

    def test_a_foreign_page_may_not(self, gateway, member):
        r = refresh(gateway, member().cookie, headers={"Origin": "https://evil.example"})

        assert refusal(r) == (403, "permission_denied")


class TestReuse:
    def test_a_double_submit_gets_the_same_successor(self, gateway, member):
        ada = member()

        first, second = ada.refresh(), ada.refresh()

        assert second.status_code == 200
        assert first.cookies["refreshToken"] == second.cookies["refreshToken"]
        assert RefreshToken.objects.count() == 2
        assert is_in(ada)

    @pytest.mark.skipif(
        connection.vendor == "sqlite", reason="SQLite's memory refuses at once where files wait"
    )
    def test_many_at_once_get_the_same_successor(self, gateway, member):
        ada = member()
        call = {
            "method": "POST",
            "url": REFRESH,
            "json": {},
            "headers": {"Cookie": f"refreshToken={ada.cookie}"},
        }

        answers = gateway.at_once([call] * 6)

        assert [r.status_code for r in answers] == [200] * 6
        assert len({r.cookies["refreshToken"] for r in answers}) == 1
        assert RefreshToken.objects.count() == 2

    def test_a_replay_later_ends_the_whole_family(self, gateway, member):
        ada = member()
        successor = ada.refresh().cookies["refreshToken"]
        assert is_in(ada)

        late = timezone.now() + timedelta(seconds=sessions.DOUBLE_SUBMIT_SECONDS + 1)
        with time_machine.travel(late, tick=True):
            replayed = ada.refresh()
            thief_or_owner = refresh(gateway, successor)

            assert replayed.status_code == thief_or_owner.status_code == 401
            assert not is_in(ada)
        [event] = AuditEvent.objects.filter(action="session.ended.reuse")
        assert event.target == str(RefreshFamily.objects.get().pk)
        assert RefreshFamily.objects.get().revoked_because == "reuse"

    def test_a_double_submit_after_the_key_was_changed_gets_nothing(
        self, gateway, member, settings, monkeypatch
    ):
        ada = member()
        ada.refresh()
        settings.JWT_SECRET = "another key of at least 32 characters"

        assert refusal(ada.refresh()) == (401, "invalid_token")

    def test_another_session_of_the_same_user_goes_on(self, gateway, member):
        ada = member()
        first = ada.cookie
        ada.sign_in()
        refresh(gateway, first)
        with time_machine.travel(timezone.now() + timedelta(seconds=20), tick=True):
            assert refresh(gateway, first).status_code == 401
            assert is_in(ada)
            assert ada.refresh().status_code == 200


class TestLogout:
    URL = "/api/v1/auth/logout"

    def test_it_ends_the_session_and_the_cookie(self, gateway, member):
        ada = member()
        assert is_in(ada)

        r = gateway.post(self.URL, {}, headers={"Cookie": f"refreshToken={ada.cookie}"})

        assert r.status_code == 204
        assert 'refreshToken=""' in r.headers["set-cookie"]
        assert "Max-Age=0" in r.headers["set-cookie"]
        assert not is_in(ada)
        assert ada.refresh().status_code == 401
        assert AuditEvent.objects.filter(action="session.ended.sign_out").count() == 1

    def test_the_access_token_is_enough(self, member):
        ada = member()

        assert ada.post(self.URL, {}).status_code == 204
        assert refusal(ada.refresh()) == (401, "invalid_token")

    @pytest.mark.parametrize("headers", [{}, {"Cookie": "refreshToken=x"}])
    def test_it_never_fails(self, gateway, headers):
        r = gateway.post(self.URL, {}, headers=headers)

        assert r.status_code == 204
        assert 'refreshToken=""' in r.headers["set-cookie"]

    def test_others_stay(self, member):
        ada, bob = member(), member()

        ada.post(self.URL)

        assert is_in(bob)


class TestWhatEndsASession:
    def test_a_deleted_user(self, member):
        ada = member()
        assert is_in(ada)
        ada.user.delete()

        assert not is_in(ada)
        assert ada.refresh().status_code == 401

    @pytest.mark.parametrize("how", ["save", "update"])
    def test_an_inactive_user(self, member, how):
        ada = member()
        assert is_in(ada)
        if how == "save":
            ada.user.is_active = False
            ada.user.save()
        else:
            type(ada.user).objects.filter(pk=ada.user.pk).update(is_active=False)

        assert not is_in(ada)
        assert ada.refresh().status_code == 401

    def test_a_new_password(self, member):
        ada = member()
        assert is_in(ada)
        ada.user.set_password("quite another password")
        ada.user.save()

        assert not is_in(ada)
        assert ada.refresh().status_code == 401

    def test_no_role_any_more(self, member):
        ada = member()
        RobinAccess.objects.all().delete()

        assert refusal(ada.refresh()) == (401, "invalid_token")

    @pytest.mark.parametrize("how", ["save", "update", "delete", "delete all"])
    def test_a_role_that_was_taken_away_counts_at_once(self, member, how):
        ada = member("ROLE_ADMIN")
        assert ada.get("/api/v1/users").status_code == 200
        access = RobinAccess.objects.get()
        match how:
            case "save":
                access.role = "ROLE_READONLY"
                access.save()
            case "update":
                RobinAccess.objects.update(role="ROLE_USER")
            case "delete":
                access.delete()
            case _:
                RobinAccess.objects.all().delete()

        assert refusal(ada.get("/api/v1/users")) == (403, "permission_denied")


def test_sessions_that_rest_for_long_are_pruned(member):
    old, new = member(), member()
    RefreshFamily.objects.filter(user=old.user).update(
        expires_at=timezone.now() - timedelta(days=2)
    )

    sessions.prune()

    assert list(RefreshFamily.objects.values_list("user", flat=True)) == [new.user.pk]


def test_revoking_twice_is_revoking_once(member):
    member()
    family = RefreshFamily.objects.get()
    for _ in range(2):
        sessions.revoke(family.pk, because="user", actor=Actor("test"))

    assert AuditEvent.objects.filter(action="session.ended.user").count() == 1
