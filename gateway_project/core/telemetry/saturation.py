"""How full a web process is: its event loop, memory, database pools, Redis pipe, channel layer.

Each process looks at itself, once a second for the lag of its loop and every five for the rest.
Workers and beat weigh themselves alone (`weigh`). Nothing here asks anybody.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from random import uniform
from typing import Any

from channels.layers import channel_layers
from django import db
from django.conf import settings

from gateway_project.core.stores import redis
from gateway_project.core.stores.bus import bus
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import (
    bus_connected,
    channel_layer_waiting,
    database_connections,
    database_waiting,
    loop_lag,
    process_memory,
    redis_waiting,
    redis_waiting_bytes,
)

TICK_SECONDS = 1.0
LOOK_EVERY = 5
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STATM = Path("/proc/self/statm")
log = get_logger("gateway.metrics")


async def watch() -> None:
    """For as long as this process serves."""
    loop = asyncio.get_running_loop()
    ticks = 0
    await asyncio.sleep(uniform(0, TICK_SECONDS))  # not in step with the other processes
    while True:
        due = loop.time() + TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS)
        loop_lag.observe(max(0.0, loop.time() - due))
        ticks += 1
        if ticks % LOOK_EVERY == 0:
            look()


def look() -> None:
    """Set the gauges of this process, which go with it."""
    weigh("web")
    for lane, pool in _pools():
        stats = pool.get_stats()
        free = stats.get("pool_available", 0)
        database_connections.labels(lane, "free").set(free)
        database_connections.labels(lane, "in_use").set(stats.get("pool_size", 0) - free)
        database_waiting.labels(lane).set(stats.get("requests_waiting", 0))
    if redis.is_open():
        waiting, size = redis.backlog()
        redis_waiting.set(waiting)
        redis_waiting_bytes.set(size)
        bus_connected.set(bus.is_listening)
    channel_layer_waiting.set(_channel_messages())


def weigh(role: str) -> None:
    """A worker inside of the web process is a part of that one."""
    process_memory.labels("web" if settings.EMBEDDED_WORKER else role).set(memory_bytes())


def memory_bytes() -> int:
    """What this process holds in memory (RSS); 0 where there is no /proc."""
    try:
        return int(STATM.read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def _pools() -> list[tuple[str, Any]]:
    """By what they are for: `pages`, or the lane of threads that must not wait for others."""
    lanes: dict[Any, dict[str, Any]] = getattr(db.connection, "_lanes", {})
    return [
        (lane.name if lane else "pages", pool)
        for lane, pools in list(lanes.items())
        for pool in list(pools.values())
    ]


def _channel_messages() -> int:
    """Messages of the channel layer that came and that nobody in this process has taken yet."""
    layers = [layer for layer in channel_layers.backends.values() if layer is not None]
    found = 0
    for layer in layers:
        of_loops = list(getattr(layer, "_layers", {}).values()) or [layer]
        for one in of_loops:
            for queue in list(getattr(one, "channels", {}).values()):
                found += queue.qsize()
    return found
