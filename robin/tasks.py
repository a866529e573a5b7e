"""What the worker does for Robin, on beat's schedule."""

from celery import shared_task

from robin import sessions


@shared_task(expires=3600)
def prune_sessions() -> int:
    """Delete sessions that ended by themselves."""
    return sessions.prune()
