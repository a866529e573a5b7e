"""Celery's queues: their names, and what waits in them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from celery import current_app
from django.conf import settings
from kombu.exceptions import ChannelError

from gateway_project.core.stores import addresses

DETECTION, WEBHOOKS, USAGE, MAIL, MAINTENANCE = NAMES = (
    "detection",  # chunks of jobs
    "webhooks",  # deliveries
    "usage",  # the log of calls and its sums
    "mail",  # what ends in a mail: notices, digests, files that were asked for
    "maintenance",  # all the rest: sweeps, retention, samples
)
PRIORITY_LAST = 9  # 0 comes first; Redis keeps a list for each
SEPARATOR = ":"


def keys_of(name: str) -> list[str]:
    """Redis' lists of a queue, the first priority first."""
    return [name, *(f"{name}{SEPARATOR}{n}" for n in range(1, PRIORITY_LAST + 1))]


def length(name: str) -> int:
    """How many messages wait in a queue. Raises what the broker's connection raises."""
    return lengths([name])[name]


def lengths(names: Sequence[str] = NAMES) -> dict[str, int]:
    url = current_app.conf.broker_write_url
    if not url.startswith(("redis", "unix", "sentinel")):
        return _lengths_in_memory(names)
    # By its own client: kombu's waits for a silent broker several times over. And by our own
    # address of sentinels: Celery's says only half of it.
    pipeline = _client(settings.REDIS_URL if url.startswith("sentinel") else url).pipeline(
        transaction=False
    )
    for name in names:
        for key in keys_of(name):
            pipeline.llen(key)
    found = iter(pipeline.execute())
    return {name: sum(next(found) for _ in keys_of(name)) for name in names}


def _lengths_in_memory(names: Sequence[str]) -> dict[str, int]:
    with current_app.connection_for_write() as connection:
        channel: Any = connection.channel()
        found = {}
        for name in names:
            try:
                found[name] = channel.queue_declare(name, passive=True).message_count
            except ChannelError:
                found[name] = 0
        return found


@lru_cache(maxsize=4)
def _client(url: str) -> Any:
    return addresses.client(url, socket_timeout=1, socket_connect_timeout=1)
