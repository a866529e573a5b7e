"""The Celery application: `celery -A gateway_project worker`, and beside it `… beat`."""

import os
import sys
from datetime import datetime
from typing import Any

from celery import Celery, Task, signals

from gateway_project.core import clock
from gateway_project.core.context import current
from gateway_project.core.telemetry import tracing
from gateway_project.core.telemetry.logging import get_logger

LAST_WORDS_SECONDS = 1.5
log = get_logger("gateway.tasks")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")


class App(Celery):
    amqp_cls = "gateway_project.worker.broker:AMQP"

    def now(self) -> datetime:
        """What beat's schedule and the ends of messages (`expires`) are counted from."""
        return clock.now()


class VersionedTask(Task):  # type: ignore[type-arg]
    """Its messages say the version of their arguments. Those of a later one are left alone.

    Rows are the truth, messages only wake: what this worker does not know, a newer one is woken
    for again, by the next tick or by the sweep.
    """

    Request = "gateway_project.worker.request:Request"
    version = 1

    def apply_async(self, *args: Any, headers: dict[str, Any] | None = None, **more: Any) -> Any:
        merged: Any = {"v": self.version, **_trace(), **(headers or {})}
        return super().apply_async(*args, headers=merged, **more)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        version = (self.request.headers or {}).get("v", 1)
        if version > self.version:
            log.warning("task_of_later_version", task=self.name, version=version)
            return None
        return self.run(*args, **kwargs)


def _trace() -> dict[str, str]:
    """The span that sends the message, for the one that takes it."""
    sender = current.get()
    if tracing.tracer is None or sender is None or not sender.traceparent:
        return {}
    return {tracing.HEADER: sender.traceparent}


app = App("gateway_project", task_cls=VersionedTask)
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
app.steps["consumer"] |= {
    "gateway_project.worker.beat:SpareBeat",
    "gateway_project.system.presence:WorkerPresence",
}


@app.on_configure.connect
def _read_settings(**_: Any) -> None:
    from gateway_project.environment import read_settings

    read_settings()


@signals.celeryd_init.connect
@signals.beat_init.connect
def _refuse_half_an_installation(**_: Any) -> None:
    from django.conf import settings

    from gateway_project.environment import lacking

    if not settings.EMBEDDED_WORKER and (lack := lacking()):
        sys.exit(lack)


@signals.celeryd_init.connect
def _give_places_back(**_: Any) -> None:
    from gateway_project.worker import slots

    slots.give_back()


@signals.celeryd_init.connect
def _leave_a_silent_broker(**_: Any) -> None:
    """Celery waits five seconds for what a connection that it leaves may still have to say: the
    broker answers a BRPOP within one."""
    from celery.worker.consumer import consumer

    consumer.COLLECT_SOCKET_TIMEOUT = LAST_WORDS_SECONDS  # type: ignore[attr-defined]


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
