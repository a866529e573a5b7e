"""A Robin that is a file (`FAKE_ROBIN`): tests write the queue, processes note that they asked."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

from django.apps import AppConfig


class FakeRobinConfig(AppConfig):
    name = "gateway_project.tests"
    label = "fake_robin"

    def ready(self):
        from robin.queue import live

        live.fetch_queue = fetch_queue


async def fetch_queue():
    return await asyncio.to_thread(_read)


def _read():
    from robin.queue.live import Queue

    path = Path(os.environ["FAKE_ROBIN"])
    with path.with_suffix(".asked").open("a") as log:
        log.write(f"{os.getpid()}\n")
    items = json.loads(path.read_text())
    return Queue(items, {"total": len(items), "ready": len(items), "claimed": 0, "dead": 0})
