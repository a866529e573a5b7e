"""A message that could not be acknowledged gives its place back.

A worker takes so many messages at once, and the next when one of them is acknowledged. Celery logs
that an acknowledgement failed, and goes on, with a place less: after one moment without Redis for
each place it takes nothing any more, and looks as if it were idle.
"""

from __future__ import annotations

from kombu.transport import redis
from kombu.transport.virtual import base
from redis.exceptions import RedisError

from gateway_project.core.telemetry.logging import get_logger

log = get_logger("gateway.tasks")


class QoS(redis.QoS):
    """Such a message comes again an hour later, or never: Redis may have done it and not said so.

    Tasks bear both: rows are the truth, and what beat sends is sent again.
    """

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        except (RedisError, OSError) as exc:
            self._forget(delivery_tag, exc)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue=requeue)
        except (RedisError, OSError) as exc:
            self._forget(delivery_tag, exc)

    def _forget(self, delivery_tag: str, error: Exception) -> None:
        log.warning("message_unacknowledged", error=type(error).__name__)
        base.QoS.ack(self, delivery_tag)


def give_back() -> None:
    redis.Channel.QoS = QoS
