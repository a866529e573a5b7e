"""What the worker does for Robin, on beat's schedule."""

from celery import shared_task

from robin.access import sessions
from robin.metrics import sampling


@shared_task(expires=60)
def prune() -> int:
    """Delete sessions that ended by themselves, and old samples."""
    return sessions.prune() + sampling.prune()


@shared_task(expires=60)
def sample_metrics() -> bool:
    """Keep Robin's figures of this minute; False where there is no Robin, or no answer."""
    return sampling.sample()
