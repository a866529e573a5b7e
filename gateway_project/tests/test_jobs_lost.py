"""A batch outlives its worker: a real one is killed with -9 in the middle, and another goes on.

What a dead worker held is sent again when its lease has ended; the test ends it by hand.
"""

from __future__ import annotations

from collections import Counter

import pytest
from celery import current_app
from django.utils import timezone

from accounts.models import UsageLog
from detection.jobs.turns import CHUNK_ITEMS
from detection.jobs.worker import RENEW_SECONDS
from detection.models import Job, JobChunk
from detection.tests.test_jobs import pages
from detection.tests.working import wait_until_sent
from gateway_project.core.stores import queues
from gateway_project.tests.served import wait_until

pytestmark = [pytest.mark.served, pytest.mark.timeout(120)]
COUNT = 1000
THREADS = ("--pool=threads", "--concurrency=4")  # as docs/batches.md advises


def submit(gateway, key):
    requests = [{"id": str(n), "text": f"What is the {n}th prime number?"} for n in range(COUNT)]
    r = gateway.post("/v1/detect/batch", {"requests": requests}, key=key)
    assert r.status_code == 202
    wait_until_sent()
    return r.json()["status_url"]


def test_a_worker_killed_in_the_middle(work, gateway, engine, acme_key):
    engine.is_slow(0.1)
    url = submit(gateway, acme_key)
    worker = work("--pool=threads", "--concurrency=2")  # the five chunks: two, two and one
    held = JobChunk.objects.filter(state="processing")
    wait_until(lambda: Job.objects.get().done > 0 and held.exists())

    worker.kill()

    finished = Job.objects.get().done
    assert finished < COUNT
    kept = {
        int(line["id"])
        for line in pages(gateway, acme_key, url)  # only as far as there is no gap
    }
    assert held.update(leased_until=timezone.now(), sent_at=None)
    work(*THREADS)
    wait_until(lambda: Job.objects.get().status == "complete", seconds=60)

    asked = Counter(one["text"] for one in engine.asked)
    assert len(asked) == COUNT
    assert all(asked[f"What is the {n}th prime number?"] == 1 for n in kept)
    again = sum(asked.values()) - COUNT
    assert again <= COUNT - finished
    results = pages(gateway, acme_key, url)
    assert [int(one["id"]) for one in results] == list(range(COUNT))
    assert {one["status"] for one in results} == {"ok"}
    assert UsageLog.objects.count() == COUNT
    assert not JobChunk.objects.exclude(items="").exists()


@pytest.mark.slow
def test_a_stop_lets_what_is_under_way_end(work, gateway, engine, acme_key):
    engine.is_slow(0.2)
    submit(gateway, acme_key)
    worker = work()
    wait_until(lambda: JobChunk.objects.filter(state="processing").exists())

    assert worker.stop() == 0

    assert not JobChunk.objects.filter(state="processing").exists()
    assert 0 < Job.objects.get().done < COUNT


def test_a_cancel_reaches_the_worker(work, gateway, engine, acme_key):
    """Within a second nothing more is handed to the engine: its chunks end before their texts."""
    assert RENEW_SECONDS <= 0.5  # the worker looks twice in the second that is promised
    engine.is_slow(1)
    url = submit(gateway, acme_key)
    worker = work(*THREADS)
    wait_until(lambda: engine.asked)

    gateway.delete(url, key=acme_key)
    assert worker.stop() == 0  # which lets what is in hand end

    begun = JobChunk.objects.exclude(attempts=0).count()
    assert len(engine.asked) < begun * CHUNK_ITEMS
    assert Job.objects.get().status == "cancelled"


@pytest.mark.slow
def test_what_celery_shows_is_true(work, gateway, engine, acme_key):
    """`inspect active` names the chunks that are judged, the queue holds those that wait."""
    engine.is_slow(2)
    submit(gateway, acme_key)
    assert queues.length(queues.DETECTION) == COUNT // CHUNK_ITEMS
    work("--pool=threads", "--concurrency=2")

    with current_app.connection_for_write() as connection:
        inspect = current_app.control.inspect(connection=connection, timeout=5)

        def two_chunks():  # between two of them a thread has none in hand
            [active] = (inspect.active() or {"nobody yet": []}).values()
            chunks = {task["args"][0] for task in active if task["name"].endswith("judge_chunk")}
            return chunks if len(chunks) == 2 else None

        chunks = wait_until(two_chunks)

    assert chunks <= {str(pk) for pk in JobChunk.objects.values_list("pk", flat=True)}
    assert queues.length(queues.DETECTION) < COUNT // CHUNK_ITEMS
