"""The Celery application: `celery -A gateway_project worker`, and beside it `… beat`."""

import os
from datetime import datetime
from typing import Any

from celery import Celery, Task, signals

from gateway_project.core import clock

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")


class App(Celery):  # type: ignore[misc]  # untyped
    def now(self) -> datetime:
        """What beat's schedule and the ends of messages (`expires`) are counted from."""
        return clock.now()


class TaskOnClock(Task):  # type: ignore[misc]
    Request = "gateway_project.worker.request:Request"


app = App("gateway_project", task_cls=TaskOnClock)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.steps["consumer"].add("gateway_project.worker.beat:SpareBeat")

CONNECTION_SECONDS = 600


# A child of the worker runs one task at a time, so it keeps one database connection. With a pool
# there, Celery would close all of it after every task: two PostgreSQL processes started and ended
# each second, their caches cold, for the usage log alone. `CELERY_DB_REUSE_MAX` keeps Celery from
# closing; what is too old or no longer works is closed here.


@signals.worker_process_init.connect
def _keep_one_connection(**_: Any) -> None:
    from django.db import connections

    for alias in connections:
        if connections.settings[alias].get("OPTIONS", {}).pop("pool", None):
            connections.settings[alias]["CONN_MAX_AGE"] = CONNECTION_SECONDS


@signals.worker_process_init.connect
def _tune_gc(**_: Any) -> None:
    from gateway_project.core.memory import tune_gc

    tune_gc()


@signals.task_prerun.connect
@signals.task_postrun.connect
def _close_old_connections(task: Any, **_: Any) -> None:
    from django.db import close_old_connections

    if not task.request.is_eager:
        close_old_connections()
