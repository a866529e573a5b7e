"""GET /auth/profile"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

from django.utils import timezone

from accounts.tests.shapes import KEY_FIELDS, moment, problem
from accounts.tests.test_usage import row
from accounts.usage import log as usage_log
from accounts.usage.rows import Batch


def log(key, *, at=None, **fields):
    usage_log.write([Batch(uuid4(), [row(key, at=at, **fields)], {}).plain()])


def test_it_has_the_fields_of_the_contract(gateway, acme_key):
    r = gateway.get("/auth/profile", key=acme_key)

    body = r.json()
    assert r.status_code == 200
    assert set(body) == {"api_key", "workspace", "plan", "usage"}
    assert set(body["api_key"]) == KEY_FIELDS
    moment(body["api_key"].pop("created_at"))
    assert body["api_key"] == {
        "id": str(acme_key.row.pk),
        "prefix": acme_key[:12],
        "last4": acme_key[-4:],
        "name": "acme",
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
    assert body["workspace"] == {
        "id": str(acme_key.row.workspace_id),
        "slug": "acme",
        "name": "Acme",
    }
    assert body["plan"] == {
        "name": "free",
        "rate_limit_per_minute": 60,
        "rate_limit_per_day": 10_000,
        "log_days": 7,
    }
    assert set(body["usage"]) == {"minute", "day", "last_30_days"}
    assert body["usage"]["minute"] == {"limit": 60, "remaining": 59, "reset_seconds": 60}
    assert body["usage"]["day"] == {"limit": 10_000, "remaining": 10_000, "reset_seconds": 0}
    assert body["usage"]["last_30_days"] == []


def test_it_never_holds_the_key(gateway, acme_key):
    r = gateway.get("/auth/profile", key=acme_key)

    assert acme_key not in r.text
    assert acme_key.row.key_hash not in r.text
    assert acme_key.split("_")[2] not in r.text


def test_it_needs_no_scope(gateway, make_key):
    key = make_key(scopes=["webhooks"])

    assert gateway.get("/auth/profile", key=key).json()["api_key"]["scopes"] == ["webhooks"]


def test_it_costs_one_of_the_minute_and_none_of_the_day(gateway, acme_key):
    first = gateway.get("/auth/profile", key=acme_key).json()["usage"]
    second = gateway.get("/auth/profile", key=acme_key).json()["usage"]

    assert first["minute"]["remaining"] - second["minute"]["remaining"] == 1
    assert second["day"]["remaining"] == 10_000


def test_it_shows_what_detections_took(gateway, engine, acme_key):
    gateway.detect("Good morning.", key=acme_key)
    gateway.detect("Good evening.", key=acme_key)

    use = gateway.get("/auth/profile", key=acme_key).json()["usage"]

    assert use["day"]["remaining"] == 9_998
    assert use["minute"]["remaining"] == 57


def test_it_adds_up_the_last_30_days(gateway, acme_key, globex_key):
    noon = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
    log(acme_key, at=noon - timedelta(days=2))
    log(acme_key, at=noon - timedelta(days=2), is_malicious=True)
    log(acme_key, at=noon - timedelta(days=2), http_status=429)
    log(acme_key, at=noon - timedelta(days=9), http_status=503)
    log(acme_key, at=noon - timedelta(days=40))
    log(globex_key, at=noon - timedelta(days=2))

    days = gateway.get("/auth/profile", key=acme_key).json()["usage"]["last_30_days"]

    assert days == [
        {
            "date": (noon - timedelta(days=9)).date().isoformat(),
            "requests": 1,
            "flagged": 0,
            "errors": 1,
        },
        {
            "date": (noon - timedelta(days=2)).date().isoformat(),
            "requests": 3,
            "flagged": 1,
            "errors": 1,
        },
    ]


def test_it_shows_a_detection_once_it_is_flushed(gateway, engine, acme_key):
    gateway.detect("Good morning.", key=acme_key)
    gateway.flush_usage()

    body = gateway.get("/auth/profile", key=acme_key).json()

    assert [day["requests"] for day in body["usage"]["last_30_days"]] == [1]
    moment(body["api_key"]["last_used_at"])
    assert body["api_key"]["last_used_ip"] == "127.0.0.1"


def test_it_shows_when_the_key_ends(gateway, make_key):
    ends = timezone.now() + timedelta(days=3)
    key = make_key(expires_at=ends)

    shown = gateway.get("/auth/profile", key=key).json()["api_key"]["expires_at"]

    assert abs(moment(shown) - ends) < timedelta(milliseconds=1)


def test_it_answers_without_limits_when_they_are_off(gateway, acme_key, settings):
    settings.RATE_LIMIT_ENABLED = False

    r = gateway.get("/auth/profile", key=acme_key)

    assert r.status_code == 200
    assert r.json()["usage"]["minute"] is None
    assert r.json()["usage"]["day"] is None
    assert "ratelimit" not in r.headers


def test_it_is_refused_over_the_minute(gateway, make_key):
    key = make_key(rate_limit_per_minute=2)

    answers = [gateway.get("/auth/profile", key=key) for _ in range(3)]

    assert [r.status_code for r in answers] == [200, 200, 429]
    problem(answers[2], 429, "rate_limited")
    assert int(answers[2].headers["retry-after"]) > 0


def test_it_carries_the_limit_headers(gateway, acme_key):
    r = gateway.get("/auth/profile", key=acme_key)

    assert r.headers["ratelimit"].startswith('"minute";r=59;t=60, "day";r=10000;t=0')
    assert r.headers["ratelimit-policy"] == (
        '"minute";q=60;w=60, "day";q=10000;w=86400, "workspace_day";q=10000;w=86400, '
        '"workspace_minute";q=300;w=60'
    )
    assert r.headers["x-ratelimit-limit"] == "60"
    assert r.headers["x-ratelimit-remaining"] == "59"
    assert r.headers["x-ratelimit-reset"] == "60"
