"""A workspace's day that is used up: told once at 80 and at 100 %, by mail and by event."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import time_machine
from django.core import mail

from accounts import mailing, services
from accounts.models import OutboxEvent, QuotaNotice, new_id
from accounts.services import Actor
from accounts.tests.shapes import logged
from accounts.usage import quotas
from gateway_project.core import clock

NOON = datetime(2027, 3, 8, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def noon(acme, alice):
    services.confirm_email(alice, actor=Actor("test"))
    acme.rate_limit_per_day = 10
    acme.wanted_events = ["quota.80", "quota.100"]
    acme.save()
    with time_machine.travel(NOON, tick=False) as at:
        yield at


@pytest.fixture
def call(acme, acme_key):
    def call(times, **values):
        for _ in range(times):
            logged(
                {
                    "request_id": new_id(), "api_key_id": acme_key.row.pk, "workspace_id": acme.pk,
                    "endpoint": "/v1/detect", "http_status": 200, "request_size": 9,
                    "response_time_ms": 2.0, "created_at": clock.now(), **values,
                }
            )  # fmt: skip

    return call


def announced():
    bodies = OutboxEvent.objects.order_by("pk").values_list("body", flat=True)
    return [body["data"]["result"]["percent"] for body in bodies if body["type"][:5] == "quota"]


def test_each_share_is_mailed_once_a_day(acme, alice, call, noon):
    call(7)
    assert (quotas.tell(), announced()) == (0, [])
    call(1)
    assert ([quotas.tell(), quotas.tell()], announced()) == ([1, 0], [80])
    call(2)
    assert ([quotas.tell(), quotas.tell()], announced()) == ([1, 0], [80, 100])
    noon.shift(timedelta(days=1))
    call(11)
    assert (quotas.tell(), announced()) == (1, [80, 100, 100])

    assert [message.to for message in mail.outbox] == [[alice.email]] * 3
    first, second, _ = mail.outbox
    assert first.subject == f"{acme.name} has used 80 % of its day"
    assert "refused until midnight UTC" in second.body
    event = OutboxEvent.objects.filter(type="quota.80").get().body
    assert "api_key_id" not in event
    assert event["data"]["result"] == {"percent": 80, "limit": 10, "used": 8, "day": "2027-03-08"}


def test_what_takes_nothing_of_the_day_is_not_counted(call, make_key):
    call(50, api_key_id=make_key(is_test=True).row.pk)
    call(50, http_status=422)

    assert (quotas.tell(), announced()) == (0, [])


def test_who_does_not_want_it_gets_none_and_webhooks_hear(alice, call):
    mailing.turn_off(alice, "usage")
    call(10)

    assert (quotas.tell(), announced()) == (0, [100])


def test_a_workspace_without_webhooks_gets_the_mail_alone(acme, call):
    acme.wanted_events = []
    acme.save()
    call(10)

    assert (quotas.tell(), announced()) == (1, [])


def test_a_suspended_workspace_gets_no_mail(acme, call):
    call(10)
    acme.suspended_at = clock.now()
    acme.save()

    assert quotas.tell() == 0
    assert not QuotaNotice.objects.exists()
