"""The part of a worker that takes messages, without what Celery's say to each other."""

from __future__ import annotations

from typing import Any

from celery.worker import consumer

NOTHING_SAID = {"without_gossip": True, "without_heartbeat": True, "without_mingle": True}


class Consumer(consumer.Consumer):
    """Says nothing to the others: nobody reads it (`system.presence` says who is there), and a
    heartbeat is sent again for ever when the broker is silent, by the loop that should leave it."""

    def __init__(self, *args: Any, **more: Any) -> None:
        more["worker_options"] = (more.get("worker_options") or {}) | NOTHING_SAID
        super().__init__(*args, **more)
