"""A database or a Redis that vanishes without a word is noticed and left, and met again at once.

TCP alone waits a quarter of an hour. The deadlines of the waits below are those of docs/faults.md,
with what starting a process on a busy machine may cost.
"""

from __future__ import annotations

import time
from unittest.mock import Mock

import httpx
import psycopg
import pytest
import redis
from celery import current_app
from django.db import connection as django_connection
from django.utils.module_loading import import_string
from kombu.asynchronous.timer import Timer

from accounts.events import publish
from accounts.models import UsageLog
from gateway_project.core.stores import addresses, liveness, silence
from gateway_project.tests.served import database_url, wait_until
from gateway_project.tests.silence import Proxy
from gateway_project.tests.test_at_rest import run_python
from webhooks.models import WebhookDelivery

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(150)]
served = pytest.mark.served
NOTICED_SECONDS = 30
BACK_SECONDS = 15
"""By design 10 and 2; a busy machine takes longer, and TCP by itself a quarter of an hour."""
WORKER_SECONDS = 30
"""Some 5, and 10 without both, on a machine that has nothing else to do."""


@pytest.fixture
def vanishing():
    """`vanishing(url)`: a proxy before it."""
    started = []

    def start(url):
        started.append(Proxy(url))
        return started[-1]

    yield start
    for proxy in started:
        proxy.close()


def checks(served):
    return httpx.get(f"{served.url}/health/ready", timeout=30).json()["checks"]


@served
def test_the_database_of_a_gateway(serve, make_key, vanishing):
    store = vanishing(database_url())
    served = serve(WORKERS="1", DATABASE_URL=store.url)
    known = make_key(rate_limit_per_minute=1000)
    assert served.detect(known).status_code == 200

    store.vanish()
    wait_until(lambda: checks(served)["database"] == "down", NOTICED_SECONDS)
    assert served.detect(known, "still known").status_code == 200
    assert served.detect(make_key()).json()["code"] == "store_unavailable"

    store.heal()
    fresh = make_key()
    wait_until(lambda: served.detect(fresh).status_code == 200, BACK_SECONDS)
    # The control plane's connections as well.
    wait_until(
        lambda: httpx.get(f"{served.url}/v1/keys", headers={"X-API-Key": fresh}).status_code != 503,
        BACK_SECONDS,
    )


@served
def test_the_redis_of_a_gateway(serve, own_redis, make_key, vanishing):
    store = vanishing(own_redis.url)
    served = serve(WORKERS="1", REDIS_URL=store.url)
    key = make_key(rate_limit_per_minute=1000)
    assert served.detect(key).status_code == 200

    store.vanish()
    wait_until(lambda: checks(served)["redis"] == "down", NOTICED_SECONDS)
    assert served.detect(key, "without limits of all").status_code == 200

    store.heal()
    wait_until(lambda: checks(served)["redis"] == "up", BACK_SECONDS)
    assert served.detect(key, "again").status_code == 200
    assert served.revoke(key).status_code == 204  # the bus is back, too
    wait_until(lambda: served.detect(key).status_code == 401, BACK_SECONDS)


@served
@pytest.mark.parametrize("which", ["redis", "database", "both"])
def test_the_stores_of_a_worker(work, own_redis, acme, webhook, receiver, vanishing, which):
    stores = {}
    if which != "database":
        stores["REDIS_URL"] = vanishing(own_redis.url)
    if which != "redis":
        stores["DATABASE_URL"] = vanishing(database_url())
    work("--concurrency=1", **{name: proxy.url for name, proxy in stores.items()})
    publish(acme, "detection.completed", result={"number": 1})
    wait_until(lambda: WebhookDelivery.objects.filter(status="delivered").count() == 1)

    for proxy in stores.values():
        proxy.vanish()
    publish(acme, "detection.completed", result={"number": 2})
    for proxy in stores.values():
        proxy.heal()

    # What hung before hangs on: the worker must leave it.
    wait_until(
        lambda: WebhookDelivery.objects.filter(status="delivered").count() == 2, WORKER_SECONDS
    )
    assert UsageLog.objects.count() == 0


class TestAConnection:
    @pytest.fixture
    def store(self, transactional_db, vanishing, monkeypatch):
        if django_connection.vendor != "postgresql":
            pytest.skip("needs PostgreSQL: `make test` starts it")
        monkeypatch.setattr(liveness, "LOOK_SECONDS", 0.2)
        return vanishing(database_url())

    def test_a_statement_that_takes_long_is_waited_for(self, store):
        with liveness.Connection.connect(store.url) as connection:
            slept = connection.execute("SELECT 1 FROM pg_sleep(1.5)").fetchone()

        assert slept == (1,)

    def test_nor_is_one_doubted_for_a_silence_that_it_outlived(self, store):
        with liveness.Connection.connect(store.url) as connection:
            silence.of_postgresql.note()
            slept = connection.execute("SELECT 1 FROM pg_sleep(1)").fetchone()

        assert slept == (1,)
        assert not connection._is_older  # it was heard of since

    @pytest.mark.parametrize("is_at_work", [False, None], ids=["idle", "nobody says"])
    def test_an_answer_that_was_on_its_way_is_taken(self, store, monkeypatch, is_at_work):
        """The server has done the statement by the time that it is asked of it."""
        asked = []

        def look(connection):
            asked.append(time.sleep(0.4))
            return is_at_work

        monkeypatch.setattr(liveness.Connection, "_is_at_work", look)
        with liveness.Connection.connect(store.url) as connection:
            silence.of_postgresql.note()
            slept = connection.execute("SELECT 1 FROM pg_sleep(0.5)").fetchone()

        assert slept == (1,)
        assert asked

    @pytest.mark.parametrize("is_back", [False, True], ids=["silent", "a new host is there"])
    def test_one_whose_answer_will_never_come_is_not(self, store, is_back):
        connection = liveness.Connection.connect(store.url)
        store.vanish()
        if is_back:
            store.heal()

        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        assert connection.closed

    def test_the_others_of_the_process_are_doubted_at_once(self, store, monkeypatch):
        first, second = (liveness.Connection.connect(store.url) for _ in range(2))
        store.vanish()
        store.heal()
        with pytest.raises(psycopg.OperationalError):
            first.execute("SELECT 1")

        monkeypatch.setattr(liveness, "LOOK_SECONDS", 3600)
        with pytest.raises(psycopg.OperationalError):
            second.execute("SELECT 2")
        with liveness.Connection.connect(store.url) as third:
            assert third.execute("SELECT 3").fetchone() == (3,)

    def test_a_server_that_was_silent_just_now_is_tried_for_a_short_time(self, store, monkeypatch):
        monkeypatch.setattr(liveness, "RETRY_SECONDS", 0.2)
        store.vanish()
        silence.of_postgresql.note()

        with pytest.raises(psycopg.errors.ConnectionTimeout):
            liveness.Connection.connect(store.url, connect_timeout=3600)

    def test_and_then_has_its_whole_time_again(self, store, monkeypatch):
        """One that is slow, and not silent, would never be met."""
        monkeypatch.setattr(liveness, "RETRY_SECONDS", 0.2)
        monkeypatch.setattr(liveness, "RECENT_SECONDS", 1.0)
        store.vanish()
        silence.of_postgresql.note()

        def wait():
            with pytest.raises(psycopg.errors.ConnectionTimeout):
                liveness.Connection.connect(store.url, connect_timeout=2)

        wait_until(lambda: wait() or silence.of_postgresql.seconds_ago < 0.1, 20)


def test_what_one_process_found_silent_is_known_to_those_forked_beside_it():
    code = """
import os
from gateway_project.core.stores.silence import of_postgresql, of_redis

for silence in (of_postgresql, of_redis):
    if not (pid := os.fork()):
        silence.note()
        os._exit(0)
    os.waitpid(pid, 0)
    print(of_postgresql.seconds_ago < 60, of_redis.seconds_ago < 60)
"""

    assert run_python(code) == ["True", "False", "True", "True"]


def test_a_worker_says_nothing_to_the_others():
    make = import_string(current_app.conf.worker_consumer.replace(":", "."))
    consumer = make(Mock(), app=current_app, controller=Mock(), timer=Timer())

    names = {step.name.rpartition(".")[2] for step in consumer.steps}
    assert names >= {"Connection", "Control", "Tasks"}
    assert not names & {"Gossip", "Heart", "Mingle"}


@pytest.mark.needs_redis
def test_one_connection_to_redis_that_broke_takes_those_that_lie_idle_with_it(own_redis, vanishing):
    store = vanishing(own_redis.url)
    pool = addresses.pool(store.url, socket_timeout=0.2)
    client = redis.Redis(connection_pool=pool)
    several = [pool.get_connection() for _ in range(3)]
    for one in several:
        pool.release(one)
    store.vanish()
    store.heal()

    with pytest.raises(redis.TimeoutError):
        client.ping()
    assert client.ping()
    assert sum(one.is_connected for one in several) == 1
    client.close()
