"""The Celery application: `celery -A gateway_project worker`, and `… beat` exactly once."""

import os
from time import perf_counter
from typing import Any

from celery import Celery
from celery.signals import setup_logging, task_postrun, task_prerun

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")

app = Celery("gateway_project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()

_began: dict[str, float] = {}


@setup_logging.connect
def _keep_logging(**_: Any) -> None:
    """settings.py has configured it; Celery would put its own format in its place."""


@task_prerun.connect
def _begin(task_id: str, **_: Any) -> None:
    _began[task_id] = perf_counter()


@task_postrun.connect
def _count(task_id: str, task: Any, state: str | None = None, **_: Any) -> None:
    from gateway_project.core.observability import task_duration, tasks_total

    tasks_total.labels(task.name, (state or "unknown").lower()).inc()
    if (began := _began.pop(task_id, None)) is not None:
        task_duration.labels(task.name).observe(perf_counter() - began)
