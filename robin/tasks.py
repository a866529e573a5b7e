"""What the worker does for Robin, on beat's schedule."""

from celery import shared_task

from gateway_project.core import mails
from gateway_project.core.stores.refused import each_alone
from robin.access import sessions
from robin.metrics import sampling
from robin.queue import alarms, jobs


@shared_task(expires=60)
def prune() -> int:
    """Delete sessions that ended by themselves, old samples, actions and alarms long over."""
    return sum(each_alone((sessions, sampling, jobs, alarms), lambda kind: kind.prune()))


@shared_task(expires=10)
def work_on_queue() -> int:
    """Go on with what is done to many items of the queue; returns how many pieces were done."""
    return jobs.work()


@shared_task(expires=60)
def sample_metrics() -> bool:
    """Keep Robin's figures of this minute; False where there is no Robin, or no answer."""
    return sampling.sample()


@shared_task(expires=10)
@mails.in_turn
def send_alarms() -> int:
    """Mail what operators are to be told of the queue; returns how many notices left."""
    return alarms.send_waiting()
