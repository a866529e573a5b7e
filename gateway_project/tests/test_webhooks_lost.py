"""Nothing is lost: real Celery workers that are killed, Redis flushed, the database thrown away.

Every event whose row is committed must arrive at a real receiver, which verifies each signature.
What a dead worker held is due again when its lease ends; the tests end leases by hand.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest
from django.db import connection, transaction
from django.utils import timezone

from accounts.events import publish
from accounts.models import OutboxEvent
from accounts.services import Actor
from gateway_project.tests.served import wait_until
from gateway_project.tests.test_served import database_away
from webhooks import services
from webhooks.models import WebhookDelivery
from webhooks.tests.receiver import Answer

pytestmark = [pytest.mark.served, pytest.mark.timeout(240)]


@pytest.fixture
def webhook(acme, receiver):
    made, secret = services.register(
        acme.pk, receiver.url(), ["detection.completed"], actor=Actor("test")
    )
    made.secret = secret
    return made


def tell(acme, count):
    """{id} of so many events, each committed."""
    return {
        str(publish(acme, "detection.completed", result={"number": n}).pk) for n in range(count)
    }


def end_leases():
    WebhookDelivery.objects.filter(status="pending", is_claimed=True).update(
        next_attempt_at=timezone.now()
    )


def delivered():
    return WebhookDelivery.objects.filter(status="delivered").count()


def check(receiver, webhook, events):
    """Each arrived, nothing else did, and every signature is right."""
    wait_until(lambda: delivered() == len(events), seconds=60)
    assert receiver.ids == events
    for got in receiver.received:
        assert got.verified_by(webhook.secret)["id"] == got.event_id
    assert not OutboxEvent.objects.filter(published_at=None).exists()


@contextmanager
def results_blocked():
    """Somebody else holds the rows: what became of a request cannot be written."""
    held, release = threading.Event(), threading.Event()

    def hold():
        with transaction.atomic():
            list(WebhookDelivery.objects.select_for_update().values_list("pk", flat=True))
            held.set()
            release.wait(60)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(60)
    try:
        yield
    finally:
        release.set()
        thread.join()


def test_a_worker_killed_between_claim_and_result(work, own_redis, acme, webhook, receiver):
    """Redis loses all it held meanwhile, too."""
    receiver.answers(Answer(hangs=True))
    events = tell(acme, 40)
    worker = work()
    wait_until(lambda: receiver.received)

    worker.kill()

    under_way = len(receiver.received)
    assert WebhookDelivery.objects.filter(is_claimed=True).count() >= under_way > 0
    assert delivered() == 0
    with own_redis.client as client:
        client.flushall()
    receiver.answers(200)
    receiver.release()
    end_leases()
    work()
    check(receiver, webhook, events)
    assert len(receiver.received) == len(events) + under_way


@pytest.mark.slow
def test_a_worker_killed_between_the_answer_and_its_commit(work, acme, webhook, receiver):
    receiver.answers(Answer(hangs=True))
    events = tell(acme, 3)
    worker = work()
    wait_until(lambda: len(receiver.received) == 3)

    with results_blocked():
        receiver.answers(200)
        receiver.release()
        # The answers are there; the worker waits for the rows.
        wait_until(lambda: _waits_for_a_lock())
        worker.kill()

    assert delivered() == 0
    end_leases()
    work()
    check(receiver, webhook, events)
    assert len(receiver.received) == 6  # at least once: here twice, under the same ids


def _waits_for_a_lock():
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )
        return cursor.fetchone()[0] > 0


@pytest.mark.slow
def test_workers_killed_at_any_moment_redis_restarted_and_the_database_away(
    work, own_redis, acme, webhook, receiver
):
    events = tell(acme, 200)
    worker = work()
    wait_until(lambda: len(receiver.received) > 20)
    worker.kill()
    own_redis.stop()  # what it held is gone
    own_redis.start()
    events |= tell(acme, 200)
    worker = work()
    end_leases()
    wait_until(lambda: len(receiver.ids) > 220)
    with database_away():
        pass
    events |= tell(acme, 200)
    wait_until(lambda: len(receiver.ids) > 450)
    own_redis.stop()
    own_redis.start()
    events |= tell(acme, 200)

    wait_until(lambda: end_leases() or delivered() == len(events), seconds=90)
    check(receiver, webhook, events)


@pytest.mark.slow
def test_a_stop_lets_what_is_in_flight_end_and_writes_it(work, acme, webhook, receiver):
    receiver.answers(Answer(hangs=True))
    tell(acme, 4)
    worker = work()
    wait_until(lambda: len(receiver.received) == 4)
    threading.Timer(1.0, receiver.release).start()

    code = worker.stop()

    assert code == 0
    assert delivered() == len(receiver.received) == 4
