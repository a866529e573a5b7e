"""A request of this very moment is found by its id, wherever its row is on its way."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from uuid import UUID

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from accounts.models import UsageLog, new_id
from accounts.tests.shapes import problem
from accounts.usage import reading, stream
from accounts.usage.buffer import buffer as usage_buffer
from detection.tests.test_detect import ATTACK
from gateway_project.core import clock
from gateway_project.core.stores import redis


@pytest.fixture(autouse=True)
def waiting(monkeypatch):
    monkeypatch.setattr(reading, "WAIT_SECONDS", 3.0)
    monkeypatch.setattr(reading, "LOOK_SECONDS", 0.02)


@pytest.fixture
def asked(gateway, engine, make_key):
    """The id of a verdict whose row is still in the process that gave it."""
    key = make_key(scopes=["detect", "usage:read"])
    return key, gateway.detect(ATTACK, key=key).json()["request_id"]


def soon(work):
    """In a moment, as the flusher and the worker do it by themselves."""
    thread = threading.Timer(0.2, work)
    thread.start()
    return thread


@pytest.mark.needs_redis
def test_it_is_read_from_the_stream_before_a_worker_took_it(gateway, asked):
    key, request_id = asked
    gateway.run(usage_buffer.flush())

    shown = gateway.get(f"/v1/requests/{request_id}", key=key)

    assert not UsageLog.objects.exists()
    assert shown.status_code == 200
    stream.drain()
    assert gateway.get(f"/v1/requests/{request_id}", key=key).json() == shown.json()


def test_one_that_has_not_left_its_process_is_waited_for(gateway, asked):
    key, request_id = asked
    thread = soon(lambda: gateway.run(usage_buffer.flush()))

    r = gateway.post(
        "/v1/feedback", {"request_id": request_id, "verdict": "false_positive"}, key=key
    )
    thread.join()

    assert r.json()["request_id"] == request_id


@pytest.mark.needs_redis
def test_one_that_leaves_the_stream_meanwhile_is_found_in_the_log(gateway, asked, monkeypatch):
    """Between two looks: it was added, written and removed."""
    key, request_id = asked
    monkeypatch.setattr(stream.Search, "look", lambda self: None)
    thread = soon(gateway.flush_usage)

    shown = gateway.get(f"/v1/requests/{request_id}", key=key)
    thread.join()

    assert shown.json()["request_id"] == request_id


@pytest.mark.needs_redis
def test_of_another_workspace_it_is_as_missing_as_none(
    gateway, asked, make_key, globex, monkeypatch
):
    _, request_id = asked
    gateway.run(usage_buffer.flush())
    monkeypatch.setattr(reading, "WAIT_SECONDS", 0.1)
    stranger = make_key(globex, scopes=["usage:read"])

    problem(gateway.get(f"/v1/requests/{request_id}", key=stranger), 404, "not_found")


def test_an_old_or_invented_one_is_not_waited_for(gateway, asked, monkeypatch):
    key, _ = asked
    monkeypatch.setattr(reading, "sleep", lambda seconds: pytest.fail("it waits"))
    old = new_id()
    monkeypatch.setattr(reading, "FRESH", timedelta(0))
    time.sleep(0.002)

    problem(gateway.get(f"/v1/requests/{old}", key=key), 404, "not_found")


@pytest.mark.needs_redis
def test_each_look_reads_only_what_was_added_since(gateway, asked, make_key, monkeypatch):
    key, _ = asked
    read = []
    real = redis.client().xrange

    class Client:
        def xrange(self, *args, **more):
            entries = real(*args, **more)
            read.extend(entry_id for entry_id, _ in entries)
            return entries

    monkeypatch.setattr(stream.redis, "client", Client)
    gateway.run(usage_buffer.flush())
    search = stream.Search(key.row.workspace_id, new_id(), clock.now())

    assert [search.look() for _ in range(3)] == [None] * 3
    assert len(read) == 1


@pytest.mark.needs_redis
def test_while_redis_is_away_the_log_is_asked_alone(asked, monkeypatch):
    key, request_id = asked

    class Away:
        def xrange(self, *args, **more):
            raise RedisConnectionError

    monkeypatch.setattr(stream.redis, "client", Away)

    assert stream.Search(key.row.workspace_id, UUID(request_id), clock.now()).look() is None
