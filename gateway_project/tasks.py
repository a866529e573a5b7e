"""Tasks of the installation itself."""

from __future__ import annotations

from celery import shared_task

from gateway_project.core.stores import redis

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
