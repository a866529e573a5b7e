"""Celery's queues: their names, and what waits in them."""

from __future__ import annotations

from typing import Any

from celery import current_app
from kombu.exceptions import ChannelError

DETECTION, WEBHOOKS, USAGE, MAIL, MAINTENANCE = NAMES = (
    "detection",  # chunks of jobs
    "webhooks",  # deliveries
    "usage",  # the log of calls and its sums
    "mail",  # notices to people
    "maintenance",  # all the rest: sweeps, retention, samples
)
PRIORITY_LAST = 9  # 0 comes first; Redis keeps a list for each


def length(name: str) -> int:
    """How many messages wait in a queue. Raises what the broker's connection raises."""
    return lengths([name])[name]


def lengths(names: tuple[str, ...] | list[str] = NAMES) -> dict[str, int]:
    with current_app.connection_for_write() as connection:
        channel: Any = connection.channel()
        found = {}
        for name in names:
            try:
                found[name] = channel.queue_declare(name, passive=True).message_count
            except ChannelError:
                found[name] = 0  # Redis has no empty lists
        return found
