"""Who calls: what is accepted as a key, what is refused and how, and what is remembered."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from unittest.mock import patch

import pytest
import time_machine
from django.db import InterfaceError, OperationalError, transaction
from django.utils import timezone

from accounts import authentication, keys, services
from accounts.keys import Peppers
from accounts.models import ApiKey
from accounts.services import Actor
from accounts.tests.shapes import problem, refusal, same_but_for_ids
from gateway_project.core import errors
from gateway_project.core.stores import database
from gateway_project.core.stores.bus import bus
from gateway_project.core.stores.caching import TTLCache
from gateway_project.core.telemetry.metrics import key_cache_total

# The data plane and the control plane, and what either answers to who has a key.
PLANES = {"/v1/limits": "policies", "/auth/profile": "api_key"}
both = pytest.mark.parametrize("path", PLANES)


def is_accepted(r):
    return r.status_code == 200 and PLANES[r.request.url.path] in r.json()


def served_stale() -> float:
    return key_cache_total.labels("stale")._value.get()


@pytest.fixture
def look_ups():
    """Counts look-ups of keys in the database, on both planes."""
    usable = ApiKey.objects.usable
    with patch.object(ApiKey.objects, "usable", autospec=True, side_effect=usable) as spy:
        yield spy


@pytest.fixture
def database_is_away():
    gone = OperationalError("the server closed the connection: host=db.internal password=hush")
    with patch.object(ApiKey.objects, "usable", autospec=True, side_effect=gone):
        yield


@both
class TestRefused:
    def test_no_key(self, gateway, path):
        r = gateway.get(path)

        body = problem(r, 401, "missing_api_key")
        assert "X-API-Key" in body["detail"]
        assert r.headers["www-authenticate"] == 'Bearer realm="gateway"'

    @pytest.mark.parametrize("header", ["Basic dXNlcjpwYXNz", "Bearer", "Bearer ", "gw_live_x"])
    def test_another_form_of_authorization_is_no_key(self, gateway, path, header):
        problem(gateway.get(path, headers={"Authorization": header}), 401, "missing_api_key")

    @pytest.mark.parametrize("text", ["x", "gw_live_", "gw_live_abc_def", "é" * 10, "x" * 5000])
    def test_what_is_no_key(self, gateway, look_ups, path, text):
        r = gateway.request("GET", path, headers={"X-API-Key": text.encode("utf-8")})

        problem(r, 401, "invalid_api_key")
        assert not look_ups.called

    def test_a_typo_without_asking_the_database(self, gateway, look_ups, acme_key, path):
        typo = acme_key[:-1] + ("0" if acme_key[-1] != "0" else "1")

        r = gateway.get(path, key=typo)

        problem(r, 401, "invalid_api_key")
        assert not look_ups.called
        assert database.hops == 0

    def test_unknown_revoked_and_expired_alike(self, gateway, make_key, path):
        revoked, expired, out_of_grace = make_key(), make_key(), make_key()
        services.revoke_key(revoked.row, actor=Actor("test"))
        past = timezone.now() - timedelta(seconds=1)
        ApiKey.objects.filter(pk=expired.row.pk).update(expires_at=past)
        ApiKey.objects.filter(pk=out_of_grace.row.pk).update(grace_until=past)

        unknown = gateway.get(path, key=keys.make_key())
        others = [gateway.get(path, key=key) for key in (revoked, expired, out_of_grace)]
        malformed = gateway.get(path, key="gw_live_nothing")

        problem(unknown, 401, "invalid_api_key")
        assert all(same_but_for_ids(unknown, other) for other in others)
        assert same_but_for_ids(unknown, malformed)

    def test_a_key_that_expires_while_it_is_remembered(self, gateway, look_ups, make_key, path):
        key = make_key(expires_at=timezone.now() + timedelta(minutes=10))
        assert gateway.get(path, key=key).status_code == 200

        with time_machine.travel(timezone.now() + timedelta(minutes=10, seconds=1)):
            r = gateway.get(path, key=key)

        problem(r, 401, "invalid_api_key")
        assert look_ups.call_count == 1

    def test_many_wrong_keys_from_one_address(self, gateway, settings, path):
        settings.RATE_LIMIT_PER_MINUTE = 3

        answers = [gateway.get(path, key=keys.make_key()) for _ in range(4)]
        elsewhere = gateway.get(path, key=keys.make_key(), client_ip="198.51.100.7")

        assert [r.status_code for r in answers] == [401, 401, 401, 429]
        problem(answers[3], 429, "rate_limited")
        assert int(answers[3].headers["retry-after"]) > 0
        assert elsewhere.status_code == 401


@both
class TestAccepted:
    def test_the_header_of_our_own(self, gateway, acme_key, path):
        assert is_accepted(gateway.get(path, headers={"X-API-Key": acme_key}))

    @pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {}", "Bearer {} "])
    def test_a_bearer_token(self, gateway, acme_key, path, form):
        r = gateway.get(path, headers={"Authorization": form.format(acme_key)})

        assert is_accepted(r)

    def test_our_own_header_wins_over_a_bearer_token(self, gateway, acme_key, path):
        headers = {"X-API-Key": acme_key, "Authorization": "Bearer of-something-else"}

        assert is_accepted(gateway.get(path, headers=headers))


@both
class TestNetworks:
    @pytest.mark.parametrize("address", ["203.0.113.5", "::ffff:203.0.113.5", "2001:db8::7"])
    def test_it_accepts_from_inside(self, gateway, make_key, path, address):
        key = make_key(allowed_cidrs=["203.0.113.0/24", "2001:db8::/32"])

        assert is_accepted(gateway.get(path, key=key, client_ip=address))

    @pytest.mark.parametrize("address", ["203.0.114.5", "127.0.0.1", "2001:db9::7", "", "unix"])
    def test_it_refuses_from_outside(self, gateway, make_key, path, address):
        key = make_key(allowed_cidrs=["203.0.113.0/24", "2001:db8::/32"])

        r = gateway.get(path, key=key, client_ip=address)

        problem(r, 403, "ip_not_allowed")

    def test_it_believes_no_header_without_a_proxy_of_ours(self, gateway, make_key, path):
        key = make_key(allowed_cidrs=["203.0.113.0/24"])

        r = gateway.get(path, key=key, headers={"X-Forwarded-For": "203.0.113.5"})

        problem(r, 403, "ip_not_allowed")

    @pytest.mark.parametrize(
        ("hops", "forwarded", "is_inside"),
        [
            (1, "203.0.113.5", True),
            (1, "198.51.100.1, 203.0.113.5", True),
            (1, "203.0.113.5, 198.51.100.1", False),  # what the client wrote itself is to the left
            (2, "203.0.113.5, 198.51.100.1", True),
            (2, "203.0.113.5", False),  # one proxy was gone around: the peer stands
        ],
    )
    def test_it_takes_the_entry_that_our_proxies_wrote(
        self, gateway, make_key, monkeypatch, path, hops, forwarded, is_inside
    ):
        monkeypatch.setattr(gateway.application, "trusted_hops", hops)
        key = make_key(allowed_cidrs=["203.0.113.0/24"])

        r = gateway.get(path, key=key, headers={"X-Forwarded-For": forwarded})

        assert is_accepted(r) if is_inside else refusal(r) == (403, "ip_not_allowed")

    def test_a_remembered_key_is_still_bound(self, gateway, make_key, path):
        key = make_key(allowed_cidrs=["203.0.113.0/24"])
        assert gateway.get(path, key=key, client_ip="203.0.113.5").status_code == 200

        problem(gateway.get(path, key=key, client_ip="198.51.100.1"), 403, "ip_not_allowed")


class TestScopes:
    def test_it_names_the_scope_that_lacks_on_the_data_plane(self, gateway, engine, make_key):
        r = gateway.detect("Good morning.", key=make_key(scopes=["batch"]))

        body = problem(r, 403, "scope_denied")
        assert "'detect'" in body["detail"]
        assert engine.asked == []

    def test_it_names_the_scope_that_lacks_on_the_control_plane(self, gateway, acme_key):
        body = problem(gateway.get("/v1/keys", key=acme_key), 403, "scope_denied")

        assert "'keys:write'" in body["detail"]

    def test_it_is_checked_before_the_body(self, gateway, engine, make_key):
        r = gateway.post("/v1/detect", {"nonsense": 1}, key=make_key(scopes=["batch"]))

        problem(r, 403, "scope_denied")


@both
class TestDatabaseAway:
    def test_an_unknown_key_is_503_and_never_401(self, gateway, database_is_away, acme_key, path):
        r = gateway.get(path, key=acme_key)

        problem(r, 503, "store_unavailable")
        assert int(r.headers["retry-after"]) > 0
        assert "db.internal" not in r.text
        assert "hush" not in r.text

    def test_its_words_reach_no_log(
        self, gateway, database_is_away, acme_key, path, capsys, caplog
    ):
        gateway.get(path, key=acme_key)

        output = capsys.readouterr().out + caplog.text
        assert "key_lookup_failed" in output
        assert "OperationalError" in output
        assert "hush" not in output
        assert acme_key not in output

    def test_any_error_of_the_database_counts(self, gateway, acme_key, path):
        gone = InterfaceError("connection already closed")
        with patch.object(ApiKey.objects, "usable", autospec=True, side_effect=gone):
            r = gateway.get(path, key=acme_key)

        problem(r, 503, "store_unavailable")

    def test_it_is_not_remembered(self, gateway, acme_key, path):
        gone = OperationalError("gone")
        with patch.object(ApiKey.objects, "usable", autospec=True, side_effect=gone):
            gateway.get(path, key=acme_key)
        database._backing_off_until = 0.0

        assert is_accepted(gateway.get(path, key=acme_key))

    def test_a_typo_is_still_401(self, gateway, database_is_away, path):
        problem(gateway.get(path, key="gw_live_x"), 401, "invalid_api_key")


@pytest.mark.parametrize(("seconds", "rest"), [(0.0, 1.0), (0.75, 0.25), (2.0, 0.25)])
def test_what_was_long_in_failing_is_soon_tried_again(gateway, monkeypatch, seconds, rest):
    """A connection to a server that is silent takes a second to fail: the next may find it back."""
    now = 1000.0
    monkeypatch.setattr(database, "_backing_off_until", 0.0)
    monkeypatch.setattr(database, "trouble_since", None)
    monkeypatch.setattr(database, "monotonic", lambda: now)

    def fail():
        nonlocal now
        now += seconds
        raise OperationalError("gone")

    with pytest.raises(errors.StoreUnavailable):
        gateway.run(database.read(fail))

    assert database._backing_off_until == now + rest


class TestAKnownKeyInAnOutage:
    @pytest.fixture
    def outage(self, gateway, acme_key, settings):
        """Every call finds the remembered key too old, and no database to ask."""
        gateway.get("/v1/limits", key=acme_key)
        settings.KEY_CACHE_SECONDS = -1.0
        gone = OperationalError("gone")
        with patch.object(ApiKey.objects, "usable", autospec=True, side_effect=gone) as look_ups:
            yield look_ups

    def test_it_works_on(self, gateway, outage, acme_key):
        before = served_stale()

        codes = [gateway.get("/v1/limits", key=acme_key).status_code for _ in range(3)]

        assert codes == [200] * 3
        assert served_stale() == before + 3

    def test_one_call_asks_and_the_others_do_not_wait_for_it(self, gateway, outage, acme_key):
        for _ in range(5):
            gateway.get("/v1/limits", key=acme_key)

        assert outage.call_count == 1  # the door rests after a failure

    def test_it_ends_after_15_minutes(self, gateway, outage, acme_key, monkeypatch):
        later = time.monotonic() + 15 * 60 + 1
        monkeypatch.setattr("gateway_project.core.stores.caching.monotonic", lambda: later)

        problem(gateway.get("/v1/limits", key=acme_key), 503, "store_unavailable")

    def test_the_first_look_up_that_succeeds_ends_the_trouble(self, gateway, acme_key, settings):
        gateway.get("/v1/limits", key=acme_key)
        settings.KEY_CACHE_SECONDS = -1.0
        gone = OperationalError("gone")
        with patch.object(ApiKey.objects, "usable", autospec=True, side_effect=gone):
            gateway.get("/v1/limits", key=acme_key)
        ApiKey.objects.update(revoked_at=timezone.now())
        database._backing_off_until = 0.0

        gateway.get("/v1/limits", key=acme_key)  # still served; the look-up goes on behind
        gateway.run(asyncio.sleep(0.2))

        assert database.trouble_since is None
        problem(gateway.get("/v1/limits", key=acme_key), 401, "invalid_api_key")


class TestForgetting:
    def test_a_look_up_that_began_before_is_not_remembered(self, gateway, acme_key):
        def revoked_meanwhile(texts):
            found = look_up(texts)
            authentication.forget(acme_key.row.pk)
            return found

        look_up = authentication._look_up
        with patch.object(authentication, "_look_up", revoked_meanwhile):
            gateway.get("/v1/limits", key=acme_key)

        assert len(authentication._memory.known) == 0

    def test_a_worker_that_hears_nothing_believes_nothing_for_long(
        self, gateway, look_ups, acme_key, monkeypatch
    ):
        monkeypatch.setattr(bus, "is_listening", False)
        monkeypatch.setattr(authentication, "BUS_DISCONNECTED_TTL", -1.0)

        for _ in range(2):
            gateway.get("/v1/limits", key=acme_key)

        assert look_ups.call_count == 2

    def test_it_waits_for_the_commit(self, gateway, acme_key):
        gateway.get("/v1/limits", key=acme_key)

        with transaction.atomic():
            authentication.forget(acme_key.row.pk)
            before = len(authentication._memory.known)

        assert (before, len(authentication._memory.known)) == (1, 0)


class TestMemory:
    @both
    def test_a_new_look_keeps_the_caller_where_nothing_changed(
        self, gateway, acme_key, settings, path
    ):
        def caller():
            gateway.get(path, key=acme_key)
            [(_, known)] = authentication._memory.known._entries.values()
            return known.caller

        settings.KEY_CACHE_SECONDS = -1.0  # every look is a new one
        first = caller()

        assert caller() is first
        ApiKey.objects.update(scopes=["batch"])
        assert caller().scopes == {"batch"}

    def test_the_second_call_asks_no_database(self, gateway, engine, acme_key):
        gateway.detect("Good morning.", key=acme_key)
        assert database.hops == 1

        gateway.detect("Good evening.", key=acme_key)

        assert database.hops == 1

    def test_both_planes_share_it(self, gateway, look_ups, acme_key):
        for path in [*PLANES] * 2:
            assert gateway.get(path, key=acme_key).status_code == 200

        assert look_ups.call_count == 1

    @both
    def test_an_unknown_key_is_remembered_too(self, gateway, look_ups, path):
        unknown = keys.make_key()

        codes = [gateway.get(path, key=unknown).status_code for _ in range(3)]

        assert codes == [401, 401, 401]
        assert look_ups.call_count == 1

    def test_equal_look_ups_at_once_are_one(self, gateway, look_ups, acme_key):
        call = {"method": "GET", "url": "/v1/limits", "headers": {"X-API-Key": acme_key}}

        answers = gateway.at_once([call] * 8)

        assert {r.status_code for r in answers} == {200}
        assert look_ups.call_count == 1

    def test_many_keys_at_once_share_their_look_ups(self, gateway, look_ups, make_key):
        calls = [
            {"method": "GET", "url": "/v1/limits", "headers": {"X-API-Key": text}}
            for text in [*(make_key() for _ in range(30)), keys.make_key()]
        ]

        answers = gateway.at_once(calls)

        assert [r.status_code for r in answers] == [200] * 30 + [401]
        # The first leaves alone, those that came meanwhile leave together.
        assert look_ups.call_count <= 3

    def test_one_that_cannot_be_read_takes_no_other_with_it(self, gateway, make_key):
        good, bad = make_key(), make_key()
        ApiKey.objects.filter(pk=bad.row.pk).update(allowed_cidrs=["10.0.0.1/8"])

        answers = gateway.at_once(
            {"method": "GET", "url": "/v1/limits", "headers": {"X-API-Key": key}}
            for key in [good, bad]
        )

        assert answers[0].status_code == 200
        assert refusal(answers[1]) == (401, "invalid_api_key")

    def test_it_ends_after_its_seconds(self, gateway, look_ups, acme_key, settings):
        settings.KEY_CACHE_SECONDS = -1.0

        gateway.get("/v1/limits", key=acme_key)
        gateway.get("/v1/limits", key=acme_key)

        assert look_ups.call_count == 2

    @both
    def test_it_is_bounded(self, gateway, monkeypatch, path):
        monkeypatch.setattr(authentication._memory, "unknown", TTLCache(3))

        for _ in range(8):
            gateway.get(path, key=keys.make_key())

        assert len(authentication._memory.unknown) == 3

    def test_it_holds_no_text_of_a_key(self, gateway, acme_key):
        gateway.get("/v1/limits", key=acme_key)

        assert len(authentication._memory.known) == 1
        assert acme_key not in repr(authentication._memory.known._entries)

    def test_forgetting_one_key_leaves_the_others(self, gateway, look_ups, make_key):
        one, other = make_key(), make_key()
        for key in (one, other):
            gateway.get("/v1/limits", key=key)

        authentication.forget(one.row.pk)
        for key in (one, other):
            gateway.get("/v1/limits", key=key)

        assert look_ups.call_count == 3


class TestPeppers:
    @both
    def test_keys_of_an_older_pepper_are_accepted(self, gateway, acme_key, settings, path):
        settings.KEY_PEPPERS = Peppers(((9, b"x" * 16), *settings.KEY_PEPPERS.by_version))

        assert is_accepted(gateway.get(path, key=acme_key))

    def test_a_new_key_takes_the_current_one(self, acme_key, make_key, settings):
        settings.KEY_PEPPERS = Peppers(((9, b"x" * 16), *settings.KEY_PEPPERS.by_version))

        assert make_key().row.pepper_version == 9
        assert acme_key.row.pepper_version != 9

    @both
    def test_keys_of_a_pepper_that_was_taken_away_are_unknown(
        self, gateway, acme_key, settings, path
    ):
        settings.KEY_PEPPERS = Peppers(((9, b"x" * 16),))

        problem(gateway.get(path, key=acme_key), 401, "invalid_api_key")
