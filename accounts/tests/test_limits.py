"""GET /v1/limits"""

from __future__ import annotations

from accounts.models import UsageLog
from accounts.tests.shapes import problem


def remaining(r):
    return {policy["name"]: policy["remaining"] for policy in r.json()["policies"]}


def test_it_has_the_fields_of_the_contract(gateway, acme_key):
    r = gateway.get("/v1/limits", key=acme_key)

    assert r.status_code == 200
    assert r.json() == {
        "policies": [
            {
                "name": "minute",
                "limit": 60,
                "remaining": 60,
                "reset_seconds": 0,
                "window_seconds": 60,
            },
            {
                "name": "day",
                "limit": 10_000,
                "remaining": 10_000,
                "reset_seconds": 0,
                "window_seconds": 86_400,
            },
            {
                "name": "workspace_day",
                "limit": 10_000,
                "remaining": 10_000,
                "reset_seconds": 0,
                "window_seconds": 86_400,
            },
        ]
    }


def test_it_costs_nothing(gateway, acme_key):
    for _ in range(5):
        r = gateway.get("/v1/limits", key=acme_key)

    assert remaining(r) == {"minute": 60, "day": 10_000, "workspace_day": 10_000}


def test_it_answers_when_the_minute_is_used_up(gateway, engine, make_key):
    key = make_key(rate_limit_per_minute=1)
    gateway.detect("Good morning.", key=key)

    r = gateway.get("/v1/limits", key=key)

    assert r.status_code == 200
    assert remaining(r) == {"minute": 0, "day": 9_999, "workspace_day": 9_999}
    assert 0 < r.json()["policies"][0]["reset_seconds"] <= 61
    assert 0 < r.json()["policies"][1]["reset_seconds"] <= 86_400


def test_keys_of_a_workspace_share_its_day_but_not_their_own(gateway, engine, make_key):
    one, two = make_key(), make_key()
    gateway.detect("Good morning.", key=one)

    assert remaining(gateway.get("/v1/limits", key=two)) == {
        "minute": 60,
        "day": 10_000,
        "workspace_day": 9_999,
    }


def test_a_refused_call_takes_nothing(gateway, engine, make_key):
    key = make_key(rate_limit_per_minute=1)
    gateway.detect("Good morning.", key=key)
    gateway.detect("Good morning.", key=key)

    assert remaining(gateway.get("/v1/limits", key=key)) == {
        "minute": 0,
        "day": 9_999,
        "workspace_day": 9_999,
    }


def test_a_used_up_workspace_says_quota_exceeded(gateway, engine, acme, make_key):
    acme.rate_limit_per_day = 1
    acme.save()
    key = make_key()
    gateway.detect("Good morning.", key=key)

    r = gateway.detect("Good morning.", key=key)

    problem(r, 429, "quota_exceeded")
    assert 0 < int(r.headers["retry-after"]) <= 86_400


def test_it_is_empty_when_limits_are_off(gateway, acme_key, settings):
    settings.RATE_LIMIT_ENABLED = False

    assert gateway.get("/v1/limits", key=acme_key).json() == {"policies": []}


def test_it_is_no_row_of_the_usage_log(gateway, acme_key):
    gateway.get("/v1/limits", key=acme_key)
    gateway.flush_usage()

    assert not UsageLog.objects.exists()


def test_its_headers_say_the_same(gateway, acme_key):
    r = gateway.get("/v1/limits", key=acme_key)

    assert (
        r.headers["ratelimit"]
        == '"minute";r=60;t=0, "day";r=10000;t=0, "workspace_day";r=10000;t=0'
    )
