"""Access tokens on the data plane: what is accepted, what it costs, and when it ends."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

import jwt
import pytest
import time_machine
from django.conf import settings as django_settings
from django.db import OperationalError
from django.db.backends.utils import CursorWrapper
from django.utils import timezone

from accounts import authentication as keys
from gateway_project.core import clock, errors
from gateway_project.core.stores import database
from gateway_project.core.stores.bus import bus
from robin.access import authentication
from robin.access.authentication import JWTAuthentication, StaffJWTAuthentication
from robin.models import RefreshFamily

pytestmark = pytest.mark.usefixtures("host_is_ahead")  # tokens are in the stores' time

KEY = django_settings.JWT_SECRET


def claims(person, **changes):
    found = jwt.decode(person.token, KEY, algorithms=["HS256"])
    return {k: v for k, v in {**found, **changes}.items() if v is not None}


def unsigned(payload, algorithm="none"):
    def part(data):
        return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()

    return f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(payload)}."


@pytest.fixture
def ask(gateway):
    """`ask(token)`: the member, through the data plane's own door."""

    def ask(token, client_ip="127.0.0.1"):
        return gateway.run(authentication.member_of(token, client_ip))

    return ask


@pytest.fixture
def look_ups(monkeypatch):
    made = []
    original = authentication.look_up

    def counted(ids):
        made.append(list(ids))
        return original(ids)

    monkeypatch.setattr(authentication, "look_up", counted)
    return made


class TestWhatIsAccepted:
    def test_a_good_token_is_its_user_with_the_permissions_of_now(self, ask, member):
        ada = member("ROLE_OPERATOR")

        found = ask(ada.token)

        assert found.user_id == ada.user.pk
        assert found.role == "ROLE_OPERATOR"
        assert {"MANAGE_QUEUE", "VIEW_QUEUE"} <= found.scopes
        assert "MANAGE_USERS" not in found.scopes
        [policy] = found.policies
        assert (policy.limit, policy.window_seconds) == (100, 60)

    @pytest.mark.parametrize(
        "forge",
        [
            lambda p: p.token[:-4] + "AAAA",
            lambda p: p.token.rpartition(".")[0] + ".",
            lambda p: unsigned(claims(p)),
            lambda p: unsigned(claims(p), "None"),
            lambda p: jwt.encode(claims(p), "another key of at least 32 characters"),
            lambda p: jwt.encode(claims(p), KEY, algorithm="HS384"),
            lambda p: jwt.encode(claims(p, exp=int(clock.time()) - 1), KEY),
            lambda p: jwt.encode(claims(p, exp=None), KEY),
            lambda p: jwt.encode(claims(p, jti=None), KEY),
            lambda p: jwt.encode(claims(p, sid=None), KEY),
            lambda p: jwt.encode(claims(p, sid="x"), KEY),
            lambda p: jwt.encode(claims(p, sid=str(uuid4())), KEY),
            lambda p: jwt.encode(claims(p, sub=str(uuid4())), KEY),
            lambda p: jwt.encode(claims(p, token_type="refresh"), KEY),
            lambda p: p.cookie,
            lambda p: "gw_live_" + "a" * 32 + "_000000",
            lambda p: "é.ü.ñ",
            lambda p: "x" * 100_000,
        ],
        ids=[
            *("changed signature", "no signature", "alg none", "alg None", "other key"),
            *("other algorithm", "expired", "no exp", "no jti", "no session", "session no uuid"),
            *("unknown session", "another user", "refresh type", "refresh token", "an API key"),
            *("no ascii", "endless"),
        ],
    )
    def test_a_bad_one_is_refused_alike(self, ask, member, forge):
        ada = member()

        with pytest.raises(errors.InvalidToken) as caught:
            ask(forge(ada))

        assert str(caught.value.detail) == errors.InvalidToken.default_detail

    def test_it_ends_with_its_time_although_it_is_remembered(self, ask, member):
        ada = member()
        ask(ada.token)

        with (
            time_machine.travel(timezone.now() + timedelta(minutes=30, seconds=1), tick=True),
            pytest.raises(errors.InvalidToken),
        ):
            ask(ada.token)

    def test_the_role_that_a_token_claims_is_nobodys(self, ask, member):
        ada = member("ROLE_READONLY")
        token = jwt.encode(claims(ada, roles=["ROLE_ADMIN"], permissions=["MANAGE_USERS"]), KEY)

        assert ask(token).role == "ROLE_READONLY"

    @pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "bearer"])
    def test_no_token_is_said_to_be_missing(self, header):
        with pytest.raises(errors.MissingToken):
            authentication.read({"HTTP_AUTHORIZATION": header})


class TestMemory:
    def test_a_known_token_costs_no_sql_and_no_look_up(self, ask, member, look_ups, monkeypatch):
        ada = member()
        ask(ada.token)
        sql, execute = [], CursorWrapper.execute

        def counted(self, *args, **kwargs):
            sql.append(args)
            return execute(self, *args, **kwargs)

        monkeypatch.setattr(CursorWrapper, "execute", counted)
        hops = database.hops

        for _ in range(5):
            ask(ada.token)

        assert len(look_ups) == 1
        assert (sql, database.hops) == ([], hops)

    def test_equal_look_ups_at_once_are_one(self, gateway, member, look_ups):
        ada = member()

        async def many():
            calls = (authentication.member_of(ada.token, "127.0.0.1") for _ in range(8))
            return await asyncio.gather(*calls)

        assert len(set(gateway.run(many()))) == 1
        assert len(look_ups) == 1

    def test_it_holds_no_token(self, ask, member):
        ada = member()
        ask(ada.token)

        assert ada.token not in repr(authentication._memory.known._entries)

    def test_it_is_asked_again_after_its_seconds(
        self, ask, member, look_ups, settings, monkeypatch
    ):
        settings.KEY_CACHE_SECONDS = -1.0
        monkeypatch.setattr(bus, "is_listening", True)
        ada = member()
        ask(ada.token)
        ask(ada.token)

        assert len(look_ups) == 2

    def test_a_worker_that_hears_nothing_asks_again(self, ask, member, look_ups, monkeypatch):
        monkeypatch.setattr(bus, "is_listening", False)
        monkeypatch.setattr(keys, "BUS_DISCONNECTED_TTL", -1.0)
        ada = member()
        ask(ada.token)
        ask(ada.token)

        assert len(look_ups) == 2

    def test_a_word_ends_it_here_at_once(self, ask, member):
        ada, bob = member(), member()
        for person in (ada, bob):
            ask(person.token)
        RefreshFamily.objects.filter(user=ada.user).update(revoked_at=timezone.now())

        bus.say(authentication.SESSIONS, str(RefreshFamily.objects.get(user=ada.user).pk))

        with pytest.raises(errors.InvalidToken):
            ask(ada.token)
        assert len(authentication._memory.known) == 1

    def test_what_was_revoked_during_its_look_up_is_not_remembered(self, ask, member, monkeypatch):
        ada = member()
        original = authentication.look_up

        def overtaken(ids):
            found = original(ids)
            authentication._memory.forget(authentication.ALL)
            return found

        monkeypatch.setattr(authentication, "look_up", overtaken)
        ask(ada.token)

        assert len(authentication._memory.known) == 0


class TestWithoutTheDatabase:
    @pytest.fixture
    def away(self, monkeypatch):
        def fail(ids):
            raise OperationalError("away")

        def go():
            monkeypatch.setattr(authentication, "look_up", fail)

        yield go
        database.forget_trouble()

    def test_an_unknown_token_is_503_not_401(self, ask, member, away):
        ada = member()
        away()

        with pytest.raises(errors.StoreUnavailable):
            ask(ada.token)

    def test_a_known_one_goes_on(self, ask, member, away, monkeypatch):
        ada = member()
        ask(ada.token)
        away()
        monkeypatch.setattr(keys, "BUS_DISCONNECTED_TTL", -1.0)
        monkeypatch.setattr(bus, "is_listening", False)

        assert ask(ada.token).user_id == ada.user.pk


def test_a_guesser_gets_no_look_up_for_each_guess(gateway, member, settings, look_ups):
    ada = member()
    settings.RATE_LIMIT_PER_MINUTE = 3
    for _ in range(3):
        gateway.get("/api/v1/auth/me", headers={"Authorization": "Bearer x"}, client_ip="10.7.7.7")

    with pytest.raises(errors.RateLimited):
        gateway.run(authentication.member_of(ada.token, "10.7.7.7"))
    assert look_ups == []


class TestTheClasses:
    def test_the_data_planes_reads_the_header(self, gateway, member):
        ada = member()
        request = SimpleNamespace(META={"HTTP_AUTHORIZATION": f"bearer {ada.token}"})
        request.gateway_context = SimpleNamespace(client_ip="127.0.0.1")

        found = gateway.run(JWTAuthentication().aauthenticate(request))

        assert found.email == ada.user.email

    def test_staffs_finds_nothing_for_others(self, gateway, member):
        ada, root = member("ROLE_ADMIN"), member(None, is_staff=True)

        def authenticate(person):
            request = SimpleNamespace(META={"HTTP_AUTHORIZATION": f"Bearer {person.token}"})
            return StaffJWTAuthentication().authenticate(request)

        assert authenticate(root)[1].is_staff
        with pytest.raises(errors.NotFound):
            authenticate(ada)
        assert StaffJWTAuthentication().authenticate(SimpleNamespace(META={})) is None

    def test_sessions_can_be_asked_for_many_at_once(self, gateway, member, look_ups):
        ids = [f.pk for f in (member(), member()) and RefreshFamily.objects.all()]

        async def ask():
            return await authentication.active_sessions([*ids, uuid4()])

        found = gateway.run(ask())

        assert [m is not None for m in found.values()] == [True, True, False]
        assert len(look_ups) == 1


def test_the_users_limit_is_a_hundred_a_minute(gateway, member, settings):
    settings.RATE_LIMIT_PER_MINUTE = 4
    ada = member()
    codes = [ada.get("/api/v1/auth/me").status_code for _ in range(6)]

    assert codes == [200] * 4 + [429] * 2
    assert "q=4;w=60" in ada.get("/api/v1/auth/me").headers["ratelimit-policy"]
