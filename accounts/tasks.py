"""What the worker does for accounts, on beat's schedule."""

from typing import Any

from celery import shared_task
from celery.signals import worker_ready
from django.conf import settings
from django.core.cache import cache

from accounts import audit, digest, reminders, retention, services
from accounts.usage import events, exports, partitions, quotas, stream
from gateway_project.core import clock, mails
from gateway_project.core.stores import deletion

HEARTBEAT_KEY = "worker:heartbeat"
HEARTBEAT_SECONDS = 15


@shared_task(expires=HEARTBEAT_SECONDS)
def record_heartbeat() -> None:
    """Leave a sign of life: it proves beat, broker and worker in one go, for `/health`."""
    cache.set(HEARTBEAT_KEY, clock.now().timestamp(), timeout=3600)


@worker_ready.connect
def _record_first_heartbeat(**_: Any) -> None:
    # Beat's first round is a while away; a worker that has just come up is up.
    record_heartbeat()


@shared_task(expires=10)  # more than hosts' clocks may be apart
def drain_usage() -> int:
    """Write the batches that web processes left in the Redis stream."""
    return stream.drain() if settings.REDIS_URL else 0


@shared_task(expires=10)
def seal_audit() -> int:
    """Number the new rows of the audit trail, and tell who listens to them."""
    return audit.seal()


@shared_task(expires=60)
def tend_usage_log() -> int:
    """Make the partitions of the days to come, drop those past the retention."""
    partitions.make_partitions_ahead()
    return partitions.prune()


@shared_task(expires=60)
def prune() -> int:
    """Forget what is past its time."""
    return retention.prune()


@shared_task(expires=10)
def erase_deleted() -> int:
    """Erase what people deleted: accounts, workspaces, webhooks."""
    return deletion.erase()


@worker_ready.connect
def _make_first_partitions(**_: Any) -> None:
    partitions.make_partitions_ahead()


@shared_task(expires=10)
@mails.in_turn
def write_exports() -> int:
    """Write on files of the log that were asked for, and tell of those that are written."""
    return exports.work()


@shared_task(expires=60)
def carry_out_deletions() -> int:
    """Delete accounts whose seven days are over; returns how many."""
    return services.carry_out_deletions()


@shared_task(expires=60)
@mails.in_turn
def remind_of_graces() -> int:
    """Tell of keys that expire, and of old ones that are still called and end soon; returns how
    many mails left."""
    return reminders.remind_of_graces() + reminders.remind_of_expiries()


@shared_task(expires=60)
@mails.in_turn
def tell_of_quotas() -> int:
    """Tell of workspaces whose day is nearly or all used up; returns how many mails left."""
    return quotas.tell()


@shared_task(expires=60)
@mails.in_turn
def send_digests() -> int:
    """Send the mails of the week; returns how many."""
    return digest.send()


@shared_task(expires=60)
def announce_expiring_keys() -> int:
    """Tell of keys that expire within a week; returns how many were told of."""
    return events.announce_expiring_keys()
