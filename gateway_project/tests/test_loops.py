"""A loop that fails in every round is said: in `/health`, by a metric and by an alert."""

from __future__ import annotations

import asyncio
import threading

import pytest
from celery import current_app
from django.conf import settings
from django.core.cache import cache

from accounts import tasks
from accounts.usage import stream
from gateway_project.core.telemetry import loops
from gateway_project.core.telemetry.loops import ROUNDS_MAX, Loop
from webhooks.delivery import engine, outbox

pytestmark = pytest.mark.hostile


@pytest.fixture(autouse=True)
def _fresh(gateway):
    for loop in Loop.known.values():
        loop.succeeded()


def health(gateway):
    body = gateway.get("/health").json()
    return body["status"], body["failing_loops"]


def test_after_so_many_rounds_health_names_it_and_an_alert_is_logged(gateway, engine, capfd):
    loop = Loop.of("usage.flush")
    for _ in range(ROUNDS_MAX - 1):
        loop.failed(ValueError())
    before = health(gateway)[1]

    loop.failed(ValueError())

    assert before == []
    assert health(gateway) == ("degraded", ["usage.flush"])
    assert f'gateway_loop_failed_rounds{{loop="usage.flush"}} {ROUNDS_MAX}.0' in (
        gateway.get("/metrics").text
    )
    said = "".join(capfd.readouterr())
    assert said.count("loop_failing") == 1
    assert "alert" in said


def test_one_round_that_succeeds_ends_it(gateway, engine):
    loop = Loop.of("usage.flush")
    for _ in range(ROUNDS_MAX):
        loop.failed(ValueError())

    loop.succeeded()

    assert health(gateway)[1] == []


def test_a_store_that_is_away_breaks_no_loop(gateway, monkeypatch):
    def away(*args, **kwargs):
        raise ConnectionError

    for name in ("add", "incr", "delete"):
        monkeypatch.setattr(type(cache._connections[cache._alias]), name, away)

    Loop.of("usage.flush").failed(ValueError())
    Loop.of("usage.flush").succeeded()


def test_everything_that_beat_sends_is_watched():
    assert {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()} <= set(Loop.known)
    assert {"usage.flush", "webhooks.delivery", "jobs.leases", "robin.live"} <= set(Loop.known)


def test_a_task_of_beats_that_fails_is_counted_and_one_that_ends_well_forgotten(
    gateway, engine, monkeypatch
):
    if not settings.REDIS_URL:
        pytest.skip("there is no stream to drain without Redis")
    name = tasks.drain_usage.name

    def broken():
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(stream, "drain", broken)
        for _ in range(ROUNDS_MAX):
            current_app.tasks[name].apply()
    failing = health(gateway)
    current_app.tasks[name].apply()

    assert failing == ("degraded", [name])
    assert health(gateway)[1] == []


def test_rounds_of_the_delivery_engine_count(gateway, monkeypatch):
    async def rounds(count):
        async with engine.Sender() as sender:
            one = engine.Engine(sender)
            for _ in range(count):
                await one.wake()

    def broken():
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "fan_out", broken)
        _in_a_thread(rounds(ROUNDS_MAX))
    failing = loops.failing()
    _in_a_thread(rounds(1))

    assert failing == ["webhooks.delivery"]
    assert loops.failing() == []


def _in_a_thread(work):
    thread = threading.Thread(target=asyncio.run, args=(work,))
    thread.start()
    thread.join(30)
