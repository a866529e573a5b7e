"""The limit comes before work that costs: look-ups, SQL, reading a body, being mailed."""

from __future__ import annotations

import json
from unittest.mock import AsyncMock, patch

import pytest
from django.core import mail
from django.test import Client

from accounts import authentication
from accounts.keys import make_key as made_up
from accounts.models import UsageLog
from accounts.tests.shapes import problem, refusal
from detection.tests.test_batch import HARMLESS, items, remaining
from gateway_project.core.api import endpoint
from gateway_project.core.ratelimit import denials
from gateway_project.core.upstream import names

pytestmark = pytest.mark.hostile
BATCH, ASYNC, DETECT = "/v1/detect/batch", "/v1/detect/async", "/v1/detect"
CALLBACK = "https://hooks.example/there"
LIMITED = 60


@pytest.fixture(autouse=True)
def nobody_is_remembered():
    denials.clear()


@pytest.fixture
def looked_up():
    """The names that a name server was asked for."""
    asked = []

    async def look_up(host, *_):
        asked.append(host)
        return ["198.41.0.4"]

    with patch.object(names, "look_up", look_up):
        yield asked


def body_of(path):
    one = {"requests": items(HARMLESS)} if path == BATCH else {"text": HARMLESS}
    return {**one, "webhook_url": CALLBACK}


@pytest.mark.parametrize("path", [DETECT, ASYNC, BATCH])
def test_a_key_of_one_a_minute_costs_one_look_up_and_the_sql_of_one_call(
    gateway, engine, make_key, counted, looked_up, path
):
    key = make_key(rate_limit_per_minute=1)
    gateway.get("/v1/limits", key=key)
    call = {"method": "POST", "url": path, "json": body_of(path)}
    call["headers"] = {"X-API-Key": key, "Idempotency-Key": "once"}
    counted.hops = 0

    answers = gateway.at_once([call] * LIMITED)

    assert sorted(r.status_code for r in answers)[1:] == [429] * (LIMITED - 1)
    assert looked_up == ["hooks.example"]
    assert counted.hops <= 3  # the look-up, the question whether it was answered, the answer


def test_what_was_refused_is_refused_again_without_redis_and_unread(
    gateway, engine, make_key, monkeypatch
):
    key = make_key(rate_limit_per_minute=1)
    gateway.detect("hello", key=key)
    first = gateway.detect("hello", key=key)
    read = []
    monkeypatch.setattr(endpoint, "parse", lambda *_: read.append(1))
    monkeypatch.setattr("gateway_project.core.api.viewsets.parse", lambda *_: read.append(1))
    monkeypatch.setattr("gateway_project.core.api.viewsets.get_limiter", lambda: None)

    again = gateway.post(BATCH, content=b"{" * 4096, key=key)

    assert not read
    assert refusal(first) == refusal(again) == (429, "rate_limited")
    assert again.headers["ratelimit"].startswith('"minute";r=0;')
    assert 0 < int(again.headers["retry-after"]) <= int(first.headers["retry-after"])


def test_a_raised_limit_counts_at_once(gateway, engine, make_key):
    key = make_key(rate_limit_per_minute=1)
    gateway.detect("hello", key=key)
    assert gateway.detect("hello", key=key).json()["code"] == "rate_limited"

    key.row.rate_limit_per_minute = 2
    key.row.save()
    authentication._memory.forget(str(key.row.pk))

    assert gateway.detect("hello", key=key).status_code == 200


def test_bodies_that_are_refused_are_read_no_oftener_than_the_minute_allows(
    gateway, engine, make_key, monkeypatch
):
    from gateway_project.core.api import viewsets

    key, read, parse = make_key(rate_limit_per_minute=3), [], viewsets.parse

    def counting(request, model):
        read.append(model)
        return parse(request, model)

    monkeypatch.setattr(viewsets, "parse", counting)
    answers = [gateway.post(BATCH, {"requests": []}, key=key) for _ in range(10)]

    assert [r.status_code for r in answers] == [422] * 3 + [429] * 7
    assert len(read) == 4
    assert "'refused' of 3 per minute" in problem(answers[-1], 429, "rate_limited")["detail"]
    assert remaining(gateway, key)["minute"] == 3  # of calls that are right nothing was taken


@pytest.mark.parametrize("path", [DETECT, ASYNC, BATCH])
def test_a_day_is_given_back_when_nothing_is_done(gateway, engine, acme_key, path):
    before = remaining(gateway, acme_key)
    body = {**body_of(path), "webhook_url": "https://10.0.0.1/"}
    with patch.object(names, "look_up", AsyncMock(return_value=["10.0.0.1"])):
        refused = gateway.post(path, {**body, "webhook_url": CALLBACK}, key=acme_key)
    after = remaining(gateway, acme_key)

    assert refused.status_code == 422
    assert before["minute"] - after["minute"] == 1
    assert (before["day"], before["workspace_day"]) == (after["day"], after["workspace_day"])


@pytest.mark.parametrize("path", ["/auth/profile", "/webhooks/list", "/v1/keys"])
def test_a_guesser_of_keys_gets_no_look_up_for_each_guess(gateway, counted, settings, path):
    settings.RATE_LIMIT_PER_MINUTE = 5
    answers = [gateway.get(path, key=made_up()) for _ in range(8)]
    counted.sql = 0

    last = gateway.get(path, key=made_up())

    assert [r.status_code for r in answers] == [401] * 5 + [429] * 3
    assert last.status_code == 429
    assert counted.sql == 0


@pytest.mark.parametrize("path", ["/accounts/login/", "/app/keys", "/openapi.json", "/admin/"])
def test_pages_are_limited_by_address_before_anything_is_asked(gateway, counted, settings, path):
    settings.PAGES_PER_MINUTE = 2
    answers = [gateway.get(path) for _ in range(2)]
    counted.sql = 0

    r = gateway.get(path)

    assert all(one.status_code < 400 for one in answers)
    assert refusal(r) == (429, "rate_limited")
    assert int(r.headers["retry-after"]) > 0
    assert counted.sql == 0
    assert gateway.get(path, client_ip="203.0.113.9").status_code < 400


def test_forms_mail_an_address_only_so_often(gateway, alice, settings):
    settings.MAILS_PER_HOUR = 2
    settings.LOGIN_RATE_LIMIT_PER_MINUTE = 100
    for _ in range(4):
        Client().post("/accounts/password/reset/", {"email": alice.email})

    assert len([one for one in mail.outbox if one.to == [alice.email]]) == 2


def test_a_refused_call_is_a_row_of_the_log_all_the_same(gateway, engine, make_key):
    key = make_key(rate_limit_per_minute=1)
    for _ in range(4):
        gateway.detect("hello", key=key)
    gateway.flush_usage()

    assert sorted(UsageLog.objects.values_list("http_status", flat=True)) == [200, 429, 429, 429]
    assert json.dumps([*UsageLog.objects.values_list("error_code", flat=True)])
