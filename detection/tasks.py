"""What the worker does for detections, on beat's schedule and when a job is made."""

from typing import Any

from celery import shared_task
from celery.signals import worker_process_shutdown, worker_shutdown
from kombu.exceptions import OperationalError

from detection.jobs import store, worker
from gateway_project.core.telemetry.logging import get_logger

log = get_logger("gateway.jobs")


@shared_task(expires=1)
def work() -> None:
    """Wake this process' worker; it goes on by itself until no job waits."""
    worker.background.wake()


def work_soon() -> None:
    """Have a worker begin now instead of within a second. Never raises."""
    try:
        work.apply_async(retry=False)
    except (OperationalError, OSError) as exc:
        log.warning("jobs_not_announced", error=type(exc).__name__)


@worker_process_shutdown.connect
@worker_shutdown.connect
def _let_chunks_end(**_: Any) -> None:
    worker.background.stop()


@shared_task(expires=3600)
def prune_jobs() -> int:
    return store.prune()
