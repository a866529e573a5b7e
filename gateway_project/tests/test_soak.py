"""Processes that serve hold no more after the thousandth call than after the hundredth.

`make soak` watches memory for as long as one likes; here the objects of a web process, of a worker
and of its child are counted between equal rounds of all that people and programs do. A leak of one
object a call, page, job or delivery is seen in any of them.
"""

from __future__ import annotations

import json
import socket
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from django.conf import settings

from accounts.models import OutboxEvent, UsageLog
from accounts.services import Actor
from accounts.usage import stream
from detection.models import Job
from detection.tests.working import broker_at
from gateway_project.celery import app
from gateway_project.tests.conftest import need_stores
from gateway_project.tests.private_redis import PrivateRedis
from gateway_project.tests.served import ROOT, Served, Worker, children_of, wait_until
from webhooks import services
from webhooks.models import WebhookDelivery

pytestmark = [pytest.mark.served, pytest.mark.timeout(180)]
DETECTIONS = 90  # of a round
BATCHES = 10
PAGES = ("/", "/accounts/login/", "/openapi.json", "/docs", "/metrics", "/health", "/nothing")
TIMES = 5
CALLS = 3  # of one connection
FEWEST = 30
"""A type that grew by fewer in a round did not with every call, page, job or delivery."""
WARM, COUNTED = 2, 2
# What libraries remember for a while, up to a bound, and is not full yet.
REMEMBERED = {
    "psycopg._queries.QueryPart",  # of the last 128 statements
    # Ends of tasks (CELERY_TASK_TIME_LIMIT), each of which goes a quarter of an hour later.
    "kombu.asynchronous.timer.Entry",
    "kombu.asynchronous.timer.scheduled",
    "worker: weakref.CallableProxyType",
    "worker: builtins.method",
}


def asked(folder: Path, pid: int) -> dict:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(30)
        probe.connect(str(folder / str(pid)))
        with probe.makefile() as answer:
            return json.loads(answer.readline())


@pytest.fixture
def processes(gateway, engine, own_redis, tmp_path_factory):
    """`(served, counts)`: a gateway, and `{process: what it holds}` whenever it is called."""
    need_stores()
    # A socket file's name has at most 107 bytes.
    folder = tmp_path_factory.mktemp("p")
    probes = {"PYTHONPATH": str(ROOT / "gateway_project/tests/probes"), "PROBES": str(folder)}
    more = {"REDIS_URL": own_redis.url, "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", **probes}
    worker = Worker(tmp_path_factory.mktemp("worker"), own_redis.url, **probes)
    served = Served(tmp_path_factory.mktemp("web"), WORKERS="1", PAGES_PER_MINUTE="100000", **more)

    def counts():
        names = {"web": served.process.pid, "worker": worker.process.pid}
        names |= {f"child {n}": pid for n, pid in enumerate(children_of(worker.process.pid))}
        return {name: asked(folder, pid) for name, pid in names.items()}

    try:
        served.wait()
        with broker_at(own_redis.url):
            yield served, counts
    finally:
        served.close()
        worker.close()


def test_nothing_grows_with_the_calls(processes, own_redis, acme, make_key, receiver):
    served, counts = processes
    key = make_key(rate_limit_per_minute=1_000_000)
    services.register(
        acme.pk, receiver.url(), ["detection.completed", "batch.completed"], actor=Actor("test")
    )

    # Some come once a minute: whichever came first between two counts would grow there.
    for entry in settings.CELERY_BEAT_SCHEDULE.values():
        app.send_task(entry["task"])
    for _ in range(WARM):
        go_round(served, key, own_redis)
    found = [counts()]
    for _ in range(COUNTED):
        go_round(served, key, own_redis)
        found.append(counts())

    # What was done for the first time grows once: a leak grows in every round.
    grown = [grown_between(*pair) for pair in pairwise(found)]
    assert {kind: [one[kind] for one in grown] for kind in grown[0] if kind in grown[1]} == {}
    before, after = found[0], found[-1]
    assert before.keys() == after.keys()
    for name, now in after.items():
        # Connections that are kept come and go; one lost with each call would be a hundred.
        assert now["files"] < before[name]["files"] + FEWEST, name
        assert now["threads"] <= before[name]["threads"] + 2, name


def grown_between(before: dict, after: dict) -> dict[str, int]:
    more = {
        f"{name}: {kind}": count - before[name]["types"].get(kind, 0)
        for name, found in after.items()
        for kind, count in found["types"].items()
        if not {kind, f"{name}: {kind}"} & REMEMBERED
    }
    return {kind: count for kind, count in more.items() if count >= FEWEST}


def go_round(served: Served, key: str, own_redis: PrivateRedis) -> None:
    """What people and programs do; ends when all that follows from it is done."""
    rows = UsageLog.objects.count()
    for first in range(0, DETECTIONS, CALLS):
        with client(served, key) as here:
            for number in range(first, first + CALLS):
                answer = here.post("/v1/detect", json={"text": f"text {number} {rows}"})
                assert answer.status_code == 200, answer.text
            here.post("/v1/detect", content=b"{")
            here.post("/v1/detect", json={"text": "x"}, headers={"X-API-Key": "wrong"})
    for number in range(BATCHES):
        texts = [{"id": str(n), "text": f"{number} {n} {rows}"} for n in range(5)]
        prefer = {"Prefer": "respond-async"} if number % 2 else {}
        with client(served, key) as here:
            answer = here.post("/v1/detect/batch", json={"requests": texts}, headers=prefer)
            assert answer.status_code in (200, 202), answer.text
    for _ in range(TIMES):
        for path in PAGES:
            with client(served, key) as here:
                here.get(path, headers={"Accept": "text/html"})

    def at_rest() -> bool:
        return not (
            UsageLog.objects.count() < rows + DETECTIONS
            or own_redis.client.xlen(stream.STREAM)
            or OutboxEvent.objects.filter(published_at=None).exists()
            or WebhookDelivery.objects.filter(status="pending").exists()
            or Job.objects.filter(finished_at=None).exists()
        )

    wait_until(at_rest, 60)


def client(served: Served, key: str) -> httpx.Client:
    """On a connection of its own, which the kernel gives to one of the two."""
    headers = {"X-API-Key": key}
    return httpx.Client(base_url=served.url, headers=headers, timeout=30, verify=False)
