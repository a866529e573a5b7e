"""The connection to the broker, for all who send and take messages.

One that says nothing any more is left soon, and tried anew at once: what waits is sent the moment
that it is back.
"""

from __future__ import annotations

from typing import Any

from celery.app import amqp
from kombu import Connection

RETRY_SECONDS = 0.25


class BrokerConnection(Connection):
    """Hardly rests between tries of a broker that is away: kombu does, up to half a minute."""

    def _ensure_connection(  # type: ignore[override]  # what else there is goes on by name
        self,
        errback: Any = None,
        max_retries: int | None = None,
        interval_start: Any = RETRY_SECONDS,
        interval_step: Any = 0,
        interval_max: Any = RETRY_SECONDS,
        **more: Any,
    ) -> Any:
        return super()._ensure_connection(
            errback, max_retries, interval_start, interval_step, interval_max, **more
        )


class AMQP(amqp.AMQP):
    Connection = BrokerConnection
