"""What an operator sees of tasks: how many ended how, how long they took, and why one failed.

Celery's signals, in the worker's child processes and in the embedded worker alike. Celery's own
log lines leave in our format (`setup_logging`); those that would quote arguments, results or whole
messages do not leave.
"""

from __future__ import annotations

import logging
from time import perf_counter
from typing import Any

from celery import signals
from celery.concurrency import prefork
from celery.exceptions import Reject
from django.conf import settings

from gateway_project import rotation
from gateway_project.core import clock
from gateway_project.core.context import RequestContext, current
from gateway_project.core.stores import statements
from gateway_project.core.telemetry import saturation, tracing
from gateway_project.core.telemetry.logging import configure_logging, get_logger
from gateway_project.core.telemetry.loops import Loop
from gateway_project.core.telemetry.metrics import task_duration, tasks_total
from gateway_project.worker import runs

log = get_logger("gateway.tasks")
# What beat sends is done again and again; all else, such as a chunk, has whoever waits for it.
PERIODIC = frozenset(str(entry["task"]) for entry in settings.CELERY_BEAT_SCHEDULE.values())
for _name in PERIODIC:
    # Twice what one may take that is ended each time.
    Loop(_name, forget_seconds=2 * settings.CELERY_TASK_TIME_LIMIT)
_started: dict[str, float] = {}  # by id of the run
_traces: dict[str, tuple[Any, Any]] = {}  # span, and what puts the context back


def _trace(task_id: str, task: Any) -> None:
    """What the run does is below its span: calls to the engine, webhooks, messages."""
    sender = (task.request.headers or {}).get(tracing.HEADER)
    span = tracing.begin(f"task {task.name}", sender, "consumer", **{"gateway.task": task.name})
    context = RequestContext("", None, tracing.traceparent_of(span))
    _traces[task_id] = span, current.set(context)


@signals.task_prerun.connect
def _begin(task_id: str, task: Any, **_: Any) -> None:
    _started[task_id] = perf_counter()
    if tracing.tracer is not None:
        _trace(task_id, task)


@signals.task_postrun.connect
def _end(task_id: str, task: Any, state: str | None, retval: Any = None, **_: Any) -> None:
    seconds = perf_counter() - _started.pop(task_id)
    if (trace := _traces.pop(task_id, None)) is not None:
        span, token = trace
        current.reset(token)
        tracing.end(span, error=state == "FAILURE")
    tasks_total.labels(task.name, (state or "failure").lower()).inc()
    task_duration.labels(task.name).observe(seconds)
    saturation.weigh("worker")
    if task.name in PERIODIC:
        runs.note(task.name, clock.time() - seconds, seconds, retval)
    if state == "SUCCESS" and task.name in Loop.known:
        Loop.of(task.name).succeeded()


@signals.task_failure.connect
def _failed(sender: Any, task_id: str, exception: BaseException, **_: Any) -> None:
    if isinstance(exception, Reject):
        return  # told a second time, by the parent; `_end` has counted it
    if sender.name in Loop.known:
        Loop.of(sender.name).failed(exception)
    if task_id not in _started:
        # The child that ran it was lost or killed: its parent says so, and no end will follow.
        tasks_total.labels(sender.name, "failure").inc()
        if sender.name in PERIODIC:
            runs.note(sender.name, clock.time(), None, exception)
    is_expected = isinstance(exception, tuple(sender.throws or ()))
    write = log.info if is_expected else log.error
    write(
        "task_failed",
        task=sender.name,
        task_id=task_id,
        error=type(exception).__name__,
        exc_info=None if is_expected else exception,
    )


@signals.task_retry.connect
def _retried(sender: Any, request: Any, reason: Any, **_: Any) -> None:
    cause = reason.exc or reason
    log.warning("task_retried", task=sender.name, task_id=request.id, error=type(cause).__name__)


@signals.celeryd_init.connect
@signals.worker_process_init.connect
def _bound_statements(**_: Any) -> None:
    statements.bind_process(statements.WORKER)


@signals.worker_ready.connect
def _say_what_is_missing(**_: Any) -> None:
    rotation.try_to_note_in_use()


@signals.worker_process_init.connect
def _start_tracing(**_: Any) -> None:
    if settings.TRACING and tracing.tracer is None:
        tracing.start("worker", settings.VERSION)


@signals.worker_ready.connect
def _start_tracing_without_children(sender: Any, **_: Any) -> None:
    """A pool of threads has no `worker_process_init`: its tasks run in this very process."""
    if not isinstance(sender.pool, prefork.TaskPool):
        _start_tracing()


@signals.worker_shutdown.connect
@signals.worker_process_shutdown.connect
def _stop_tracing(**_: Any) -> None:
    tracing.stop()


@signals.celeryd_init.connect
def _skip_banner(instance: Any, **_: Any) -> None:
    instance.quiet = instance.quiet or settings.LOG_FORMAT == "json"


@signals.setup_logging.connect
def configure(**_: Any) -> None:
    """Keep Celery from bringing its own format: `LOG_LEVEL` and `LOG_FORMAT` are for all of us."""
    configure_logging(level=settings.LOG_LEVEL, format=settings.LOG_FORMAT)
    logging.getLogger("celery.app.trace").addFilter(_is_not_about_a_run)
    logging.getLogger("celery.worker.consumer.consumer").addFilter(_without_message)


def _is_not_about_a_run(record: logging.LogRecord) -> bool:
    return not hasattr(record, "data")  # those of a run's end carry it; `_failed` has said it


def _without_message(record: logging.LogRecord) -> bool:
    """Cut lines about tasks that cannot be read or are unknown before the message they quote."""
    text = str(record.msg).strip()
    if "\n" in text:
        record.msg = text.partition("\n")[0].partition(" [")[0]
        if isinstance(record.args, tuple):
            record.args = record.args[: record.msg.count("%")]
    return True
