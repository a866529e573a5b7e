"""/app/usage: the month so far, where it goes, and both as a file."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from asgiref.sync import async_to_sync

from accounts.models import new_id
from accounts.tests.shapes import logged
from gateway_project.core import clock
from portal.usage import chosen_month, forecast, month_of


@pytest.fixture
def add(acme, acme_key):
    def add(at=None, **fields):
        row = {
            "request_id": new_id(),
            "api_key_id": acme_key.row.pk,
            "workspace_id": acme.pk,
            "endpoint": "/v1/detect",
            "http_status": 200,
            "request_size": 1,
            "response_time_ms": 1.0,
            "created_at": at or clock.now(),
        }
        return logged(row | fields)

    return add


@pytest.mark.parametrize("months_ago", [0, 1])
def test_what_was_refused_and_what_tests_sent_is_not_billed(owner, add, make_key, months_ago):
    now = month_of(clock.now())
    month = now.before if months_ago else now
    at = month.begins + timedelta(minutes=1)
    test = make_key(is_test=True)
    for _ in range(3):
        add(at)
    add(at, http_status=422)
    add(at, http_status=429)
    for status in (200, 422):
        add(at, api_key_id=test.row.pk, http_status=status)

    facts = owner.get(f"/app/usage?month={month.name}").context
    file = body_of(owner.get(f"/app/usage/export?month={month.name}"))

    total = facts["total"]
    assert (total["requests"], total["units"], total["tests"]) == (7, 3, 1)
    assert (facts["busiest"], facts["judged"]) == (3, 4)
    assert {key.pk: sums["requests"] for key, sums in facts["by_key"]}[test.row.pk] == 2
    assert file.splitlines()[1].endswith('"/v1/detect",7,3,1,0,4,0,0')
    assert owner.get("/app/usage").context["then"] == (3 if months_ago else 0)


def test_the_workspaces_day_is_not_that_of_its_test_keys(
    owner, gateway, engine, acme_key, make_key
):
    gateway.detect("Good morning.", key=make_key(is_test=True))

    today = owner.get("/app/usage").context["today"].state
    assert today.remaining == today.limit
    assert owner.get("/app/").context["workspace_day"].remaining == today.limit


def test_who_judged(owner, add):
    add()
    add(cached=True)
    add(status="degraded")

    total = owner.get("/app/usage").context["total"]

    assert (total["engine"], total["remembered"], total["embedded"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("day", "units", "expected"), [(1, 10, 300), (15, 150, 300), (30, 300, 300)]
)
def test_a_forecast_goes_on_as_it_went(day, units, expected):
    month = month_of(datetime(2026, 4, 1, tzinfo=UTC))

    assert forecast(units, month, month.begins + timedelta(days=day)) == expected


@pytest.mark.parametrize("text", ["", "nonsense", "2026-13", "1999-01", "9999-12"])
def test_what_is_no_month_is_this_one(text):
    assert chosen_month(text) == month_of(clock.now())


def test_last_month_is_a_file(owner, add):
    before = month_of(clock.now()).before
    add(before.begins + timedelta(hours=3))
    add(before.begins + timedelta(hours=4), is_malicious=True)
    add()

    answer = owner.get(f"/app/usage/export?month={before.name}")
    head, row = body_of(answer).splitlines()

    assert answer["Content-Disposition"] == f'attachment; filename="usage-{before.name}.csv"'
    columns = "day,endpoint,requests,units,tests,flagged,engine,remembered,embedded"
    assert head == ",".join(f'"{name}"' for name in columns.split(","))
    assert row == f'"{before.begins:%Y-%m-%d}","/v1/detect",2,2,0,1,2,0,0'


def test_an_empty_month_draws_no_axes(owner, acme):
    page = owner.get("/app/usage").content.decode()

    assert "No detection in this month yet" in page
    assert 'class="drawing"' not in page


@pytest.mark.hostile
def test_others_usage_is_not_in_it(stranger, add):
    add()

    assert stranger.get("/app/usage").context["total"]["requests"] == 0


def body_of(answer):
    async def read():
        return b"".join([piece async for piece in answer.streaming_content]).decode()

    return async_to_sync(read)()
