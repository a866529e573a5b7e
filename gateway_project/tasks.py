"""Tasks of the installation itself."""

from __future__ import annotations

from celery import shared_task

from gateway_project.core import mails
from gateway_project.core.stores import redis
from gateway_project.staff import actions
from gateway_project.system import sampling
from portal import availability, mailings

ANSWER_SECONDS = 60


def answer_key(nonce: str) -> str:
    return f"gw:doctor:{nonce}"


@shared_task(expires=15)
def answer_doctor(nonce: str, queue: str) -> None:
    """Say that a worker takes from `queue`: the doctor waits for it."""
    client = redis.client()
    with client.pipeline(transaction=False) as pipeline:
        pipeline.sadd(answer_key(nonce), queue)
        pipeline.expire(answer_key(nonce), ANSWER_SECONDS)
        pipeline.execute()


@shared_task(expires=60)
def sample_status() -> int:
    """Note for the status page how each part of the installation does at this moment."""
    return availability.record(sampling.states())


@shared_task(expires=60)
def undo_acts() -> int:
    """Undo what staff did until a time that has come."""
    return actions.undo_due()


@shared_task(expires=10)
@mails.in_turn
def send_announcements() -> int:
    """Send the next of the announcements that go by mail."""
    return mailings.work()
