"""The connection to the broker, for all who send and take messages.

One that says nothing any more is left soon, and tried anew at once: what waits is sent the moment
that it is back.
"""

from __future__ import annotations

from time import monotonic, sleep
from typing import Any

from celery.app import amqp
from kombu import Connection

REST_SECONDS = 0.25
TRY_SECONDS = 1.0


class BrokerConnection(Connection):
    """Tries a broker that is away each second, where kombu rests up to half a minute.

    A silent one takes the second by itself, so the next try follows soon; one that refuses is not
    asked more often, nor said so in the log.
    """

    def _ensure_connection(  # type: ignore[override]  # what else there is goes on by name
        self,
        errback: Any = None,
        max_retries: int | None = None,
        interval_start: Any = REST_SECONDS,
        interval_step: Any = 0,
        interval_max: Any = REST_SECONDS,
        **more: Any,
    ) -> Any:
        tried_at = monotonic()

        def failed(error: Exception, rest: float) -> None:
            nonlocal tried_at
            if errback:
                errback(error, rest)
            if rest:  # none where somebody waits for the answer
                sleep(max(0.0, tried_at + TRY_SECONDS - REST_SECONDS - monotonic()))
            tried_at = monotonic() + rest

        return super()._ensure_connection(
            failed, max_retries, interval_start, interval_step, interval_max, **more
        )


class AMQP(amqp.AMQP):
    Connection = BrokerConnection
