"""Beat's scheduler, on a clock of the test's: how often it turns, and looks into the database."""

from __future__ import annotations

import datetime
import time

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from gateway_project.celery import app
from gateway_project.worker import beat

# Only what is due in a turn takes time by itself: without that a spin would never end.
TURN_SECONDS = 0.0005
SECONDS = 30


@pytest.fixture
def run(transactional_db, monkeypatch):
    """`run(seconds)` is beat's own loop; gives (names sent, turns, looks for changes)."""
    with time_machine.travel(datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC), tick=False) as now:
        monkeypatch.setattr(beat, "monotonic", time.time)
        scheduler = beat.Scheduler(app, max_interval=1)
        sent: list[str] = []
        monkeypatch.setattr(scheduler, "apply_entry", lambda entry, **_: sent.append(entry.name))

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

        yield run


def test_it_sends_on_time_and_does_not_turn_in_between(run):
    sent, turns, looks = run(SECONDS)

    assert SECONDS - 2 <= sent.count("deliver-webhooks") <= SECONDS + 1
    assert 1 <= sent.count("worker-heartbeat") <= 2
    # One turn for each task, and one more that says how long to sleep.
    assert turns <= 2 * len(sent) + SECONDS
    assert looks <= SECONDS / beat.LOOK_SECONDS + 1


def test_it_hears_of_an_edit_within_seconds(run):
    run(SECONDS)
    PeriodicTask.objects.get(name="deliver-webhooks").delete()
    run(beat.LOOK_SECONDS + 1)

    sent, _, _ = run(SECONDS)

    assert "deliver-webhooks" not in sent
    assert "work-on-jobs" in sent
