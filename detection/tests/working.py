"""The worker's part, without a worker: what the tasks of all chunks that wait would do."""

from __future__ import annotations

import json
from contextlib import contextmanager
from uuid import UUID

import pytest
from celery import current_app
from django.utils import timezone

from detection import tasks
from detection.jobs import store, worker
from detection.models import JobChunk
from gateway_project.core.stores import queues, redis


def free_chunks():
    """Nobody has these, in the order in which their tasks are sent."""
    found = JobChunk.objects.filter(
        store._is_free(timezone.now()), job__workspace__suspended_at=None
    )
    return list(found.order_by("number", "pk").values_list("pk", flat=True))


def work_all() -> None:
    wait_until_sent()  # whoever takes turns holds the chunks for a moment
    before: list[UUID] = []
    while chunks := free_chunks():
        assert chunks != before, "nobody gets on with them"
        before = chunks
        for chunk_id in chunks:
            worker.judge_chunk(chunk_id)


def wait_until_sent() -> None:
    """Tasks are sent behind the request that made them."""
    tasks._sender.submit(int).result(10)


def in_line() -> list[UUID]:
    """The chunks whose messages wait in Redis, in the order in which workers get them."""
    wait_until_sent()
    client = redis.client()
    keys = queues.keys_of(queues.DETECTION)
    found = [raw for key in keys for raw in reversed(client.lrange(key, 0, -1))]
    return [UUID(json.loads(raw)["headers"]["argsrepr"].strip("(',)")) for raw in found]


@contextmanager
def broker_at(url):
    """Send tasks there: the tests' own Redis has no worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(current_app.conf, "broker_write_url", url)
        current_app._after_fork()  # forgets its connections
        yield
    current_app._after_fork()
