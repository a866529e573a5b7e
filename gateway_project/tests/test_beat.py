"""Beat's scheduler, on a clock of the test's: how often it turns, looks into the database, and who
of several sends.
"""

from __future__ import annotations

import datetime
import time
from types import SimpleNamespace

import pytest
import time_machine
from celery.worker.consumer import consumer
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import PeriodicTask, PeriodicTasks
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from accounts.usage import stream
from gateway_project import celery
from gateway_project.celery import app
from gateway_project.core.stores import redis
from gateway_project.worker import beat

# Only what is due in a turn takes time by itself: without that a spin would never end.
TURN_SECONDS = 0.0005
SECONDS = 30


@pytest.fixture
def now(transactional_db, monkeypatch):
    """A clock that stands until the test moves it, and no beat but the test's."""
    forget_the_lock()
    with time_machine.travel(datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC), tick=False) as now:
        monkeypatch.setattr(beat, "monotonic", time.time)
        yield now
    forget_the_lock()


def forget_the_lock():
    """As if its holder was silent for too long."""
    if settings.REDIS_URL:
        redis.client().delete(beat.LOCK)


class Beat:
    """A scheduler that only notes what it would send."""

    def __init__(self):
        self.sent: list[str] = []
        self.scheduler = beat.Scheduler(app, max_interval=1)
        self.scheduler.apply_entry = lambda entry, **_: self.sent.append(entry.name)


@pytest.fixture
def run(now):
    """`run(seconds)` is beat's own loop; gives (names sent, turns, looks for changes)."""
    one = Beat()
    scheduler, sent = one.scheduler, one.sent
    scheduler.tick()  # it leads now, and has written what the settings say

    def run(seconds):
        sent.clear()
        turns, until = 0, time.time() + seconds
        with CaptureQueriesContext(connection) as queries:
            while time.time() < until:
                now.shift(max(scheduler.tick() or 0, TURN_SECONDS))
                turns += 1
        table = PeriodicTasks._meta.db_table
        looks = sum(f'FROM "{table}"' in query["sql"] for query in queries)
        return list(sent), turns, looks

    return run


def test_it_sends_on_time_and_does_not_turn_in_between(run):
    sent, turns, looks = run(SECONDS)

    expected = SECONDS / settings.CELERY_BEAT_SCHEDULE["deliver-webhooks"]["schedule"]
    assert expected - 2 <= sent.count("deliver-webhooks") <= expected + 1
    assert 1 <= sent.count("worker-heartbeat") <= 2
    # One turn for each task, one more that says how long to sleep, and the looks for usage.
    assert turns <= 2 * len(sent) + SECONDS + SECONDS / beat.STREAM_SECONDS
    assert looks <= SECONDS / beat.EDITED_SECONDS + 1


def test_it_hears_of_an_edit_within_seconds(run):
    run(SECONDS)
    PeriodicTask.objects.get(name="deliver-webhooks").delete()
    run(beat.EDITED_SECONDS + 1)

    sent, _, _ = run(SECONDS)

    assert "deliver-webhooks" not in sent
    assert "work-on-jobs" in sent


@pytest.mark.hostile
@pytest.mark.needs_redis
class TestSeveral:
    @pytest.fixture
    def together(self, now):
        """`together(seconds, *beats)`: all of them turn, each in its own time."""

        def turn(seconds, *beats):
            for one in beats:
                one.sent.clear()
            due = dict.fromkeys(beats, time.time())
            until = time.time() + seconds
            while time.time() < until:
                for one in beats:
                    if due[one] <= time.time():
                        wait = one.scheduler.tick() or 0
                        due[one] = time.time() + max(wait, TURN_SECONDS)
                now.shift(max(min(due.values()) - time.time(), TURN_SECONDS))
            return [one.sent.count("deliver-webhooks") for one in beats]

        return turn

    def test_two_send_no_more_than_one(self, together):
        first, second = Beat(), Beat()

        assert together(SECONDS, first, second) == [pytest.approx(SECONDS, abs=2), 0]

    def test_when_one_stops_the_other_goes_on(self, together):
        first, second = Beat(), Beat()
        together(SECONDS, first, second)
        first.scheduler.close()

        assert together(SECONDS, second) == [pytest.approx(SECONDS, abs=4)]

    def test_when_one_dies_the_other_goes_on_and_it_sends_no_more(self, together):
        first, second = Beat(), Beat()
        together(SECONDS, first, second)
        forget_the_lock()
        taken_over = together(SECONDS, second)

        assert taken_over == [pytest.approx(SECONDS, abs=4)]
        assert together(SECONDS, first, second)[0] == 0  # it was only frozen

    def test_an_edit_by_a_host_that_is_behind_is_seen(self, run, now):
        run(SECONDS)
        PeriodicTasks.objects.update(last_update=timezone.now() - datetime.timedelta(seconds=10))
        PeriodicTask.objects.filter(name="deliver-webhooks").update(enabled=False)
        run(beat.EDITED_SECONDS + 1)

        assert "deliver-webhooks" not in run(SECONDS)[0]


@pytest.mark.needs_redis
class TestUsage:
    @pytest.fixture(autouse=True)
    def nothing_waits(self, now):
        redis.client().delete(stream.STREAM, stream.LOCK, stream.SENT)
        yield
        redis.client().delete(stream.STREAM, stream.LOCK, stream.SENT)

    def test_what_waits_is_written_soon_and_nothing_is_sent_for_nothing(self, run):
        assert run(SECONDS)[0].count(beat.DRAIN) <= SECONDS / 5 + 1
        redis.client().xadd(stream.STREAM, {"rows": ""})

        assert beat.DRAIN in run(2 * beat.STREAM_SECONDS)[0]

    def test_one_that_nobody_takes_is_not_sent_again_and_again(self, run):
        redis.client().xadd(stream.STREAM, {"rows": ""})

        assert run(SECONDS)[0].count(beat.DRAIN) <= SECONDS / 5 + 2

    def test_while_somebody_writes_it_nobody_else_is_sent(self, run):
        redis.client().xadd(stream.STREAM, {"rows": ""})
        with redis.client().lock(stream.LOCK, timeout=60):
            assert run(SECONDS)[0].count(beat.DRAIN) <= SECONDS / 5 + 1


@pytest.mark.needs_redis
def test_a_worker_whose_beat_finds_redis_silent_leaves_all_that_it_has(now, monkeypatch):
    """Its loop ends by an error of its broker's connection, and goes on after any other."""

    def silent():
        raise RedisTimeoutError

    forgotten, timer = [], SimpleNamespace(call_after=lambda *_: None)
    worker = SimpleNamespace(app=app, timer=timer)
    spare = beat.SpareBeat(worker)
    spare.start(worker)
    monkeypatch.setattr(beat, "redis", SimpleNamespace(client=silent))
    monkeypatch.setattr(beat.database, "forget_connections", lambda: forgotten.append(True))

    with pytest.raises(app.connection_for_read().connection_errors):
        spare._turn(timer)
    assert forgotten


def test_a_broker_that_is_away_is_tried_at_once_and_for_ever(monkeypatch):
    asked = []
    monkeypatch.setattr("kombu.connection.retry_over_time", lambda *args, **_: asked.append(args))

    app.connection_for_write().ensure_connection(
        None, app.conf.broker_connection_max_retries, callback=None
    )

    [(*_, retries, first, step, longest, _)] = asked
    assert (retries, first, step, longest) == (None, 0.25, 0, 0.25)


def test_a_full_redis_is_no_silent_one(now, monkeypatch):
    """It answers: the worker goes on with what it has of both stores."""

    class Full:
        def lock(self, *_, **__):
            raise ResponseError("OOM command not allowed")

    monkeypatch.setattr(settings, "REDIS_URL", "redis://full")
    monkeypatch.setattr(beat, "redis", SimpleNamespace(client=Full))
    monkeypatch.setattr(beat.database, "forget_connections", pytest.fail)
    timer = SimpleNamespace(call_after=lambda *_: None)
    worker = SimpleNamespace(app=app, timer=timer)
    spare = beat.SpareBeat(worker)
    spare.start(worker)

    spare._turn(timer)


@pytest.mark.needs_redis
def test_who_lost_the_lock_for_a_while_reads_again_what_was_sent(now):
    one = Beat().scheduler
    one.tick()
    before = one._last_timestamp
    forget_the_lock()
    now.shift(beat.LOOK_SECONDS)

    assert one.tick() == 0
    assert not one.is_leading
    PeriodicTasks.objects.update(last_update=timezone.now())
    one.tick()
    assert one.is_leading
    assert one._last_timestamp != before


def test_a_worker_waits_for_the_last_words_of_its_broker_as_long_as_a_brpop_takes():
    assert consumer.COLLECT_SOCKET_TIMEOUT  # Celery's own name
    celery._leave_a_silent_broker()

    assert consumer.COLLECT_SOCKET_TIMEOUT == celery.LAST_WORDS_SECONDS > 1
