"""Background work as staff see it: what beat sends, and how each run ended."""

from __future__ import annotations

import csv
import io
from datetime import timedelta

import pytest
from celery import current_app
from celery.exceptions import WorkerLostError
from celery.schedules import schedule
from django.conf import settings
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import ModelEntry

from gateway_project.core import clock
from gateway_project.core.telemetry.loops import ROUNDS_MAX, Loop
from gateway_project.staff import background
from gateway_project.tests.test_desk import desk, operator  # noqa: F401 - fixtures
from gateway_project.worker import runs, signals

PATH = "/admin/desk/background/"
NAME, TASK = "undo-acts", "gateway_project.tasks.undo_acts"


@pytest.fixture(autouse=True)
def _scheduled(gateway):
    """As a beat writes it down when it starts; nothing has run."""
    cache.delete_many([f"run:{task}" for task in signals.PERIODIC])
    for name in signals.PERIODIC:
        Loop.of(name).succeeded()
    for name, entry in settings.CELERY_BEAT_SCHEDULE.items():
        every = schedule(timedelta(seconds=entry["schedule"]))
        ModelEntry.from_entry(name, app=current_app, task=entry["task"], schedule=every)


def work(name=NAME):
    [found] = [one for one in background.background()["work"] if one.name == name]
    return found


def test_each_task_of_the_schedule_is_there(operator):  # noqa: F811
    text = operator.get(PATH).text

    for name, entry in settings.CELERY_BEAT_SCHEDULE.items():
        assert name in text
        assert entry["task"] in text
    assert background.background()["missing"] == []


def test_a_run_is_noted_with_how_long_it_took_and_what_it_said(operator):  # noqa: F811
    before = clock.time()

    current_app.tasks[TASK].apply()

    one = work()
    assert before <= one.run.began <= clock.time()
    assert 0 < one.run.seconds < 60
    assert (one.run.is_well, one.run.result, one.state[0]) == (True, "0", "well")
    assert "0 done" in operator.get(PATH).text


def test_noting_a_run_asks_no_database(gateway):
    with CaptureQueriesContext(connection) as queries:
        runs.note(TASK, clock.time(), 0.5, 3)

    assert len(queries) == 0
    assert work().run.result == "3"


def test_one_that_fails_is_first_and_named(operator, monkeypatch):  # noqa: F811
    def broken():
        raise RuntimeError("gw_live_secret")

    monkeypatch.setattr("gateway_project.staff.actions.undo_due", broken)
    for _ in range(ROUNDS_MAX):
        current_app.tasks[TASK].apply()

    found = background.background()["work"][0]
    text = operator.get(PATH).text

    assert (found.name, found.state[0], found.failures) == (NAME, "failing", ROUNDS_MAX)
    assert "RuntimeError" in text
    assert "gw_live_secret" not in text


def test_a_process_that_was_lost_is_reported(gateway):
    signals._failed(current_app.tasks[TASK], "an-id-that-never-began", WorkerLostError("killed"))

    assert (work().run.result, work().run.seconds) == ("WorkerLostError", None)


@pytest.mark.parametrize(("ago", "state"), [(30, "well"), (110, "well"), (130, "late")])
def test_late_is_over_its_time_by_more_than_its_interval(gateway, ago, state):
    runs.note(TASK, clock.time() - ago, 0.1, 0)  # of each minute

    assert work().state[0] == state
    assert work().overdue == pytest.approx(max(0, ago - 60), abs=5)


def test_one_that_somebody_switched_off_is_said_and_not_late(gateway):
    PeriodicTask.objects.filter(name=NAME).update(enabled=False)
    runs.note(TASK, clock.time() - 10_000, 0.1, 0)

    assert (work().state[0], work().is_late) == ("switched off", False)


def test_what_no_beat_ever_wrote_down_is_reported(operator):  # noqa: F811
    PeriodicTask.objects.filter(name=NAME).delete()

    assert f"Never sent by any beat: {TASK}" in operator.get(PATH).text


def test_without_the_cache_it_says_so_and_what_was_sent(operator, monkeypatch):  # noqa: F811
    def away(*args, **kwargs):
        raise ConnectionError

    PeriodicTask.objects.filter(name=NAME).update(last_run_at=timezone.now())
    runs.note(TASK, clock.time(), 0.1, 0)
    of_all_threads = type(cache._connections[cache._alias])
    for name in ("get_many", "set"):
        monkeypatch.setattr(of_all_threads, name, away)

    r = operator.get(PATH)

    assert r.status_code == 200
    assert "Redis is away" in r.text
    assert "sent" in r.text
    runs.note(TASK, clock.time(), 0.1, 0)  # and no run fails for it


def test_as_a_file_with_the_same_rows(operator):  # noqa: F811
    current_app.tasks[TASK].apply()

    header, *rows = csv.reader(io.StringIO(operator.get(f"{PATH}?csv=background").text))

    assert header[0] == "name"
    assert {row[0] for row in rows} == set(settings.CELERY_BEAT_SCHEDULE)


def test_its_queries_are_few(operator):  # noqa: F811
    operator.get(PATH)
    with CaptureQueriesContext(connection) as queries:
        background.background()

    assert len(queries) == 1
