"""The connection to the broker, for all who send and take messages.

One that says nothing any more is left soon, and tried anew each second: what waits is sent the
moment that it is back.
"""

from __future__ import annotations

from typing import Any

from celery.app import amqp
from kombu import Connection

RETRY_SECONDS = 1


class BrokerConnection(Connection):
    """Tries a broker that is away each second: kombu rests two longer each time, up to thirty."""

    def _ensure_connection(  # type: ignore[override]  # what else there is goes on by name
        self,
        errback: Any = None,
        max_retries: int | None = None,
        interval_start: int = RETRY_SECONDS,
        interval_step: int = 0,
        interval_max: int = RETRY_SECONDS,
        **more: Any,
    ) -> Any:
        return super()._ensure_connection(
            errback, max_retries, interval_start, interval_step, interval_max, **more
        )


class AMQP(amqp.AMQP):
    Connection = BrokerConnection
