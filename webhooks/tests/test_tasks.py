"""What beat asks of the worker for webhooks."""

from __future__ import annotations

from datetime import timedelta

import pytest
import time_machine
from django.db import transaction
from django.utils import timezone

from accounts.events import event, publish, publish_all
from accounts.models import OutboxEvent
from gateway_project.core.telemetry.metrics import webhook_oldest_pending
from webhooks import tasks
from webhooks.delivery import engine, outbox
from webhooks.models import WebhookDelivery


@pytest.fixture
def published(acme, webhook, receiver):
    def tell(count=1):
        for _ in range(count):
            publish(acme, "detection.completed", result={})

    return tell


def wait_until(condition):
    from time import monotonic, sleep

    until = monotonic() + 20
    while not condition():
        assert monotonic() < until, "not within the time"
        sleep(0.02)  # a thread's progress cannot be awaited


class TestDeliver:
    def test_it_wakes_an_engine_that_goes_on_by_itself(self, published, receiver):
        published(30)
        try:
            tasks.deliver()
            wait_until(lambda: len(receiver.received) == 30)
            published(1)
            tasks.deliver()
            wait_until(lambda: len(receiver.received) == 31)
        finally:
            engine.background.stop()

        assert WebhookDelivery.objects.filter(status="delivered").count() == 31

    def test_one_engine_keeps_its_connections(self, published, receiver):
        try:
            for n in range(1, 4):
                published(1)
                tasks.deliver()
                wait_until(lambda n=n: len(receiver.received) == n)
        finally:
            engine.background.stop()

        assert len(receiver.peers) == 1

    def test_what_its_own_process_publishes_wakes_it_without_beat(self, acme, published, receiver):
        published(1)
        assert engine.background._thread is None  # where none runs, none is started
        try:
            tasks.deliver()
            wait_until(lambda: len(receiver.received) == 1)
            published(1)
            wait_until(lambda: len(receiver.received) == 2)
            with transaction.atomic():
                publish_all([event(acme.pk, "detection.completed", result={}) for _ in range(3)])
                assert len(receiver.received) == 2
            wait_until(lambda: len(receiver.received) == 5)
        finally:
            engine.background.stop()

    def test_with_nothing_due_it_asks_twice_and_writes_nothing(
        self, webhook, django_assert_num_queries
    ):
        with django_assert_num_queries(2) as asked:
            outbox.fan_out()
            outbox.Claims().take(100, {}, 4)

        assert all(query["sql"].startswith("SELECT") for query in asked.captured_queries)


class TestMeasure:
    def measured(self):
        tasks.measure()
        return outbox.oldest_pending_seconds(), webhook_oldest_pending._value.get()

    def test_nothing_waits(self, webhook):
        assert self.measured() == (0, 0)

    def test_an_event_that_nobody_took_up_yet(self, published):
        published()
        with time_machine.travel(timezone.now() + timedelta(seconds=30), tick=False):
            assert all(29 < seconds < 31 for seconds in self.measured())

    def test_a_delivery_that_is_due_and_none_that_waits_for_its_time(self, published, receiver):
        receiver.answers(503)
        published()
        engine.deliver_all()
        assert self.measured() == (0, 0)

        with time_machine.travel(timezone.now() + timedelta(seconds=100), tick=False):
            assert all(90 < seconds < 100 for seconds in self.measured())


class TestPrune:
    def test_what_is_done_goes_with_its_log_after_the_retention(self, published, receiver):
        published(2)
        engine.deliver_all()
        receiver.answers(503)
        published(1)
        engine.deliver_all()

        with time_machine.travel(timezone.now() + timedelta(days=89)):
            assert tasks.prune() == 0
        with time_machine.travel(timezone.now() + timedelta(days=91)):
            assert tasks.prune() == 2

        assert [each.status for each in WebhookDelivery.objects.all()] == ["pending"]
        assert OutboxEvent.objects.count() == 1
