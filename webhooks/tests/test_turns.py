"""Workspaces take turns for deliveries, whatever number of events and webhooks one of them has."""

from __future__ import annotations

import threading
from collections import Counter
from datetime import timedelta

import pytest
from cryptography.fernet import Fernet
from django.conf import settings
from django.db import connection

from accounts.events import event, publish_all
from accounts.models import OutboxEvent, Parked, new_id
from gateway_project.core import clock
from gateway_project.core.sharing import SharedBudget
from webhooks import services
from webhooks.catalogue import VERDICT
from webhooks.delivery import engine, outbox
from webhooks.models import WebhookDelivery
from webhooks.tests.conftest import ACTOR
from webhooks.tests.receiver import Answer

pytestmark = pytest.mark.hostile


@pytest.fixture
def listen(gateway):
    """`listen(acme, 3)`: it has so many webhooks for what is flagged."""

    def listen(workspace, count=1):
        for number in range(count):
            url = f"https://198.41.0.4/{number}"
            services.register(workspace.pk, url, ["detection.flagged"], actor=ACTOR)

    return listen


def tell(workspace, count, *, ago=0):
    before = list(OutboxEvent.objects.values_list("pk", flat=True))
    events = [
        event(
            workspace.pk,
            "detection.flagged",
            result=VERDICT,
            request_id=str(new_id()),
            api_key_id=new_id(),
        )
        for _ in range(count)
    ]
    publish_all(events)
    at = clock.now() - timedelta(seconds=ago)
    OutboxEvent.objects.exclude(pk__in=before).update(created_at=at)


def whose(workspaces):
    """How many deliveries each has."""
    found = Counter(WebhookDelivery.objects.values_list("webhook__workspace_id", flat=True))
    return [found[workspace.pk] for workspace in workspaces]


def test_a_thousand_events_of_one_do_not_keep_anothers_first_waiting(
    acme, globex, listen, monkeypatch
):
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has one customer")
    monkeypatch.setattr(outbox, "EVENTS_AT_ONCE", 20)
    listen(acme), listen(globex)
    tell(acme, 100, ago=60)
    tell(globex, 3)

    assert outbox.fan_out() == 13
    assert whose([acme, globex]) == [10, 3]
    while outbox.fan_out():
        pass
    assert whose([acme, globex]) == [100, 3]


def test_a_workspace_with_many_webhooks_leaves_places(acme, globex, listen):
    listen(acme, 20), listen(globex)
    tell(acme, 10, ago=60)
    outbox.fan_out()
    WebhookDelivery.objects.update(next_attempt_at=clock.now() - timedelta(seconds=60))
    tell(globex, 2)
    outbox.fan_out()
    shares, claims = SharedBudget(24), outbox.Claims()

    def claimed():
        jobs = claims.take(shares.most - shares.used, {}, 4, shares=shares)
        return Counter(job.workspace_id for job in jobs)

    assert claimed() == {acme.pk: 12, globex.pk: 2}
    assert claimed() == {}  # ten places are left, for whoever comes
    shares.give_back(acme.pk, 6)
    assert claimed() == {acme.pk: 5}


def test_what_one_has_no_room_for_hides_nobody_elses(acme, globex, listen):
    """Behind more candidates than are looked at: found by the turn through all webhooks."""
    listen(acme, 20), listen(globex)
    tell(acme, 20, ago=60)
    outbox.fan_out()
    WebhookDelivery.objects.update(next_attempt_at=clock.now() - timedelta(seconds=60))
    tell(globex, 1)
    outbox.fan_out()
    shares = SharedBudget(24)
    shares.note(acme.pk, 12)

    jobs = outbox.Claims().take(12, {}, 4, shares=shares)

    assert [job.workspace_id for job in jobs] == [globex.pk]


@pytest.fixture
def cannot_be_read(settings, listen):
    """`cannot_be_read(acme, 3)`: its webhooks have secrets of a key that nobody has."""

    def listen_unread(workspace, count):
        known = settings.FIELD_ENCRYPTION_KEYS
        settings.FIELD_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
        listen(workspace, count)
        settings.FIELD_ENCRYPTION_KEYS = known

    return listen_unread


def test_secrets_that_nobody_can_decrypt_end_nobody_elses_round(
    acme, globex, receiver, make_webhook, cannot_be_read, monkeypatch
):
    """As many were taken as may be at once, and none could be sent: that was taken for an end."""
    monkeypatch.setattr(engine, "CLAIMED_AT_ONCE", 8)
    cannot_be_read(globex, 6), make_webhook(events=["detection.flagged"])
    tell(globex, 10)
    outbox.fan_out()
    WebhookDelivery.objects.update(next_attempt_at=clock.now() - timedelta(seconds=60))
    tell(acme, 1)
    outbox.fan_out()

    engine.deliver_all()

    assert len(receiver.received) == 1
    assert {one.status for one in WebhookDelivery.objects.filter(webhook__workspace=globex)} == {
        "pending"
    }


def test_they_are_asked_about_once_a_minute_and_given_up_when_all_others_would_be(
    globex, cannot_be_read
):
    cannot_be_read(globex, 1)
    tell(globex, 3)
    outbox.fan_out()
    claims, deliveries = outbox.Claims(), WebhookDelivery.objects.all()

    def take(claims):
        deliveries.update(next_attempt_at=clock.now())
        assert claims.take(10, {}, 2) == []
        return claims.taken

    assert (take(claims), take(claims)) == (2, 0)
    deliveries.update(created_at=clock.now() - outbox.LEFT_MAX)
    assert (take(outbox.Claims()), take(outbox.Claims())) == (2, 1)
    assert {one.status for one in deliveries} == {"failed"}
    assert Parked.objects.filter(kind=outbox.UNSENDABLE).count() == 3


def test_a_hundred_that_hang_leave_places_to_others_of_their_workspace(
    acme, receiver, make_webhook, settings
):
    """They are let go only when all others have come."""
    settings.WEBHOOK_DELIVERIES_IN_FLIGHT_MAX = 40  # of which one workspace takes 20
    paths = [f"/hangs/{number}" for number in range(10)]
    for path in paths:
        make_webhook(path, ["detection.flagged"])
        receiver.answers(Answer(hangs=True), path=path)
    for number in range(10):
        make_webhook(f"/{number}", ["detection.flagged"])
    tell(acme, 5)
    hanging: list[int] = []
    done = threading.Event()

    def watch():
        while sum("hangs" not in one.path for one in receiver.received) < 50:
            if done.wait(0.02):
                return
        hanging.append(sum("hangs" in one.path for one in receiver.received))
        for path in paths:
            receiver.answers(200, path=path)
        receiver.release()

    watcher = threading.Thread(target=watch)
    watcher.start()
    engine.deliver_all()
    done.set()
    watcher.join()

    assert hanging == [10]
    assert len(receiver.received) == 100


def test_windows_are_bounded_though_all_of_them_are_narrow(monkeypatch):
    monkeypatch.setattr(engine, "WINDOWS_MAX", 100)
    one = engine.Engine(sender=None)
    for number in range(1000):
        window = one._window((new_id(), str(number)), engine.ConcurrencyWindow)
        window.limit = 1  # its receiver does not answer in time

    assert len(one._windows) <= 100
    assert one._shares.most == settings.WEBHOOK_DELIVERIES_IN_FLIGHT_MAX
