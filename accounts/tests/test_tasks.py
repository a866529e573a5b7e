"""What the worker does for accounts, and what beat asks of it."""

from __future__ import annotations

from datetime import timedelta

import pytest
import time_machine
from celery import current_app as app
from django.conf import settings
from django.utils import timezone

from accounts import tasks
from accounts.models import UsageLog
from accounts.tests.test_usage import row
from accounts.usage import partitions
from accounts.usage.buffer import buffer as usage_buffer


def worker_of(gateway):
    r = gateway.get("/health")
    assert r.status_code == 200
    return r.json()["components"]["worker"]["status"]


class TestHeartbeat:
    def test_the_worker_is_down_while_none_was_heard(self, gateway):
        assert worker_of(gateway) == "down"

    def test_it_is_up_with_a_heartbeat(self, gateway):
        tasks.record_heartbeat()

        assert worker_of(gateway) == "up"

    def test_a_worker_that_came_up_is_up_at_once(self, gateway):
        tasks._record_first_heartbeat(sender=None)

        assert worker_of(gateway) == "up"

    @pytest.mark.parametrize(("beats", "status"), [(2.9, "up"), (3.1, "down")])
    def test_three_missed_beats_are_down(self, gateway, beats, status):
        ago = timedelta(seconds=beats * tasks.HEARTBEAT_SECONDS)
        with time_machine.travel(timezone.now() - ago, tick=False):
            tasks.record_heartbeat()

        assert worker_of(gateway) == status


def test_the_log_is_tended(gateway, acme_key):
    partitions.prune()  # emptying the database between tests leaves their partitions
    old = timezone.now() - timedelta(days=91)
    usage_buffer.append(row(acme_key, at=old), "127.0.0.1")
    usage_buffer.append(row(acme_key), "127.0.0.1")
    gateway.flush_usage()

    assert tasks.tend_usage_log() == 1
    assert UsageLog.objects.count() == 1


@pytest.mark.parametrize("name", settings.CELERY_BEAT_SCHEDULE)
def test_beat_asks_for_a_task_that_exists(name):
    app.loader.import_default_modules()
    entry = settings.CELERY_BEAT_SCHEDULE[name]

    assert entry["task"] in app.tasks
    assert set(entry) <= {"task", "schedule", "args", "kwargs", "options"}


@pytest.mark.parametrize("name", settings.CELERY_BEAT_SCHEDULE)
def test_a_task_that_waited_too_long_is_not_run_any_more(name):
    """A backlog of beats after an outage must not be worked off.

    Those that come sooner than every ten seconds have ten: hosts' clocks may be that far apart.
    """
    app.loader.import_default_modules()
    task = app.tasks[settings.CELERY_BEAT_SCHEDULE[name]["task"]]

    seconds = settings.CELERY_BEAT_SCHEDULE[name]["schedule"]
    assert task.expires == max(10, seconds)


def test_the_heartbeat_is_asked_for_as_often_as_health_expects():
    assert settings.CELERY_BEAT_SCHEDULE["worker-heartbeat"]["schedule"] == tasks.HEARTBEAT_SECONDS
