"""GET /v1/limits"""

from __future__ import annotations

import pytest

from accounts import authentication
from accounts.models import Plan, UsageLog
from accounts.tests.shapes import problem, refusal


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
            {
                "name": "workspace_minute",
                "limit": 300,
                "remaining": 300,
                "reset_seconds": 0,
                "window_seconds": 60,
            },
        ]
    }


def test_it_costs_nothing(gateway, acme_key):
    for _ in range(5):
        r = gateway.get("/v1/limits", key=acme_key)

    assert remaining(r) == {
        "minute": 60,
        "day": 10_000,
        "workspace_day": 10_000,
        "workspace_minute": 300,
    }


def test_it_answers_when_the_minute_is_used_up(gateway, engine, make_key):
    key = make_key(rate_limit_per_minute=1)
    gateway.detect("Good morning.", key=key)

    r = gateway.get("/v1/limits", key=key)

    assert r.status_code == 200
    assert remaining(r) == {
        "minute": 0,
        "day": 9_999,
        "workspace_day": 9_999,
        "workspace_minute": 299,
    }
    assert 0 < r.json()["policies"][0]["reset_seconds"] <= 61
    assert 0 < r.json()["policies"][1]["reset_seconds"] <= 86_400


def test_keys_of_a_workspace_share_its_day_but_not_their_own(gateway, engine, make_key):
    one, two = make_key(), make_key()
    gateway.detect("Good morning.", key=one)

    assert remaining(gateway.get("/v1/limits", key=two)) == {
        "minute": 60,
        "day": 10_000,
        "workspace_day": 9_999,
        "workspace_minute": 299,
    }


def test_a_refused_call_takes_nothing(gateway, engine, make_key):
    key = make_key(rate_limit_per_minute=1)
    gateway.detect("Good morning.", key=key)
    gateway.detect("Good morning.", key=key)

    assert remaining(gateway.get("/v1/limits", key=key)) == {
        "minute": 0,
        "day": 9_999,
        "workspace_day": 9_999,
        "workspace_minute": 299,
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
        == '"minute";r=60;t=0, "day";r=10000;t=0, "workspace_day";r=10000;t=0, '
        '"workspace_minute";r=300;t=0'
    )


class TestTheMinuteOfAWorkspace:
    """Minutes of keys do not add up without end."""

    pytestmark = pytest.mark.hostile

    def test_all_keys_share_it_and_the_answer_says_which_limit_spoke(
        self, gateway, engine, acme, make_key
    ):
        acme.rate_limit_per_minute = 3
        acme.save()
        keys = [make_key(rate_limit_per_minute=2) for _ in range(3)]

        answers = [gateway.detect("Good morning.", key=key) for key in keys * 2]

        assert [r.status_code for r in answers] == [200] * 3 + [429] * 3
        assert (
            "'workspace_minute' of 3 per minute"
            in problem(answers[-1], 429, "rate_limited")["detail"]
        )
        assert answers[-1].headers["x-ratelimit-limit"] == "3"
        assert '"workspace_minute";r=0;' in answers[-1].headers["ratelimit"]
        assert '"workspace_minute";q=3;w=60' in answers[-1].headers["ratelimit-policy"]

    def test_it_is_five_keys_minutes_unless_the_plan_says_else(self, gateway, acme_key):
        def limit():
            authentication._memory.forget(authentication.ALL)
            policies = gateway.get("/v1/limits", key=acme_key).json()["policies"]
            return {policy["name"]: policy["limit"] for policy in policies}["workspace_minute"]

        assert limit() == 300
        Plan.objects.update(workspace_rate_limit_per_minute=90)
        assert limit() == 90

    def test_a_key_that_operators_raised_above_it_has_its_own(self, gateway, make_key):
        key = make_key(rate_limit_per_minute=1000)

        policies = gateway.get("/v1/limits", key=key).json()["policies"]

        assert [p["limit"] for p in policies if p["window_seconds"] == 60] == [1000, 1000]

    def test_on_trial_all_keys_share_the_minute_of_one(self, gateway, engine, acme, make_key):
        acme.is_confirmed = False
        acme.save()
        keys = [make_key() for _ in range(3)]

        answers = [gateway.detect("Good morning.", key=key) for key in keys * 5]

        assert [r.json()["decision"] for r in answers[:10]] == ["allow"] * 10
        assert {refusal(r) for r in answers[10:]} == {(429, "rate_limited")}

    def test_another_workspace_has_its_own(self, gateway, engine, acme, make_key, globex_key):
        acme.rate_limit_per_minute = 1
        acme.save()
        Plan.objects.update(rate_limit_per_minute=60)
        keys = [make_key(rate_limit_per_minute=1) for _ in range(2)]
        _, of_acme = [gateway.detect("Good morning.", key=key) for key in keys]

        assert refusal(of_acme) == (429, "rate_limited")
        assert gateway.detect("Good morning.", key=globex_key).json()["decision"] == "allow"
