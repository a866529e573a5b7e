"""What the worker does for webhooks, on beat's schedule."""

from typing import Any

from celery import shared_task
from celery.signals import worker_process_shutdown, worker_shutdown

from accounts.usage import partitions
from gateway_project.core import mails
from gateway_project.core.telemetry.metrics import webhook_oldest_pending
from webhooks.delivery import engine, notices, outbox, subscriptions


@shared_task(expires=10)
def deliver() -> None:
    """Wake this process' engine; it goes on by itself until nothing is due."""
    engine.background.submit(engine.Engine.wake)


@worker_process_shutdown.connect
@worker_shutdown.connect
def _let_deliveries_end(**_: Any) -> None:
    engine.background.stop()


@shared_task(expires=10)
@mails.in_turn
def send_notices() -> int:
    """Send the mails that wait; returns how many left."""
    return notices.send_waiting()


@shared_task(expires=15)
def measure() -> None:
    webhook_oldest_pending.set(outbox.oldest_pending_seconds())


@shared_task(expires=60)
def prune() -> int:
    """Drop events and their deliveries past the retention of the usage log."""
    return outbox.prune(partitions.retention_days())


@shared_task(expires=10)
def close_pending() -> int:
    """Give up what is on its way to webhooks that are sent nothing more."""
    return subscriptions.close_pending()
