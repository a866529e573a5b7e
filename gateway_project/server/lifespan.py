"""What one web process holds from its start to its stop, opened and closed by the ASGI lifespan."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any, ClassVar

import httpx
from django.conf import settings
from django.urls import get_resolver

from accounts.usage.buffer import buffer as usage_buffer
from detection import shadows
from detection.engines import registry
from detection.ledger import ledger
from gateway_project.core.api import openapi
from gateway_project.core.context import Receive, Send
from gateway_project.core.memory import collect_at_rest, tune_gc
from gateway_project.core.stores import migrations, redis, statements
from gateway_project.core.stores.bus import bus
from gateway_project.core.telemetry import migration_counts, saturation, tracing
from gateway_project.core.telemetry.access_log import request_log
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.system import presence
from robin.queue import live, scan
from robin.upstream import client as robin_client

SWITCH_SECONDS = 0.0005
"""So long a thread of the control plane keeps the event loop waiting for the interpreter. Python's
own 5 ms come again in each of the handful of turns that a detection takes."""
log = get_logger("gateway.process")


class Process:
    """Starts in the order of need and stops in reverse: readiness first, stores last."""

    started_at = monotonic()
    ready = False
    leaving = False  # a signal came: every answer then says `connection: close`
    probe_client: ClassVar[httpx.AsyncClient]

    def __init__(self) -> None:
        self._held = AsyncExitStack()

    async def lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    # Imports every view now: the first request would in its event loop, and what
                    # comes after the freeze is walked by each collection. Before anything listens
                    # to the bus, which would wait for it.
                    get_resolver().reverse_dict  # noqa: B018 - reading it does
                    await self.start()
                except Exception as exc:  # noqa: BLE001 - the server wants every failure said
                    log.error("start_failed", error=repr(exc))
                    await send({"type": "lifespan.startup.failed", "message": repr(exc)})
                    return
                self._in_background(migration_counts.export())
                self._in_background(collect_at_rest())
                self._in_background(saturation.watch())
                tune_gc()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def start(self) -> None:
        Process.started_at = monotonic()
        sys.setswitchinterval(SWITCH_SECONDS)
        openapi.document()  # as large as nothing else that is served, and the same for everybody
        statements.bind_process(statements.of_requests())
        if settings.TRACING:
            tracing.start("web", settings.VERSION)
            self._held.push_async_callback(asyncio.to_thread, tracing.stop)
        await migrations.look()
        if settings.REDIS_URL:
            redis.open_connection(settings.REDIS_URL, settings.CACHE_REDIS_URL)
            self._held.push_async_callback(redis.close_connection)
            bus.start()
            self._held.push_async_callback(bus.stop)
            self._in_background(presence.announce_web())
        usage_buffer.start()
        self._held.push_async_callback(usage_buffer.stop)
        ledger.start()
        self._held.push_async_callback(ledger.stop)
        registry.open_engines()
        self._held.push_async_callback(registry.close_engines)
        self._held.push_async_callback(shadows.stop)
        if settings.ROBIN_CLIENT_API_URL:
            robin_client.open_robin()
            self._held.push_async_callback(robin_client.close_robin)
            await scan.open_scanner()
            self._held.push_async_callback(scan.close_scanner)
        if live.fetch_queue is not None:
            await live.open_hub(live.fetch_queue)
            self._held.push_async_callback(live.close_hub)
        # Building its TLS context takes a tenth of a second: once, not at a health check.
        Process.probe_client = httpx.AsyncClient(timeout=1.0, trust_env=False)
        self._held.push_async_callback(Process.probe_client.aclose)
        if settings.EMBEDDED_WORKER:
            from gateway_project.worker.embedded import EmbeddedWorker

            worker = await asyncio.to_thread(EmbeddedWorker.started)
            self._held.push_async_callback(asyncio.to_thread, worker.stop)
        Process.ready = True
        log.info("process_started", version=settings.VERSION)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.wait([task])

        self._held.push_async_callback(end)

    async def stop(self) -> None:
        Process.ready = False
        await self._held.aclose()
        request_log.flush()
        log.info("process_stopped")


def uptime_seconds() -> int:
    return int(monotonic() - Process.started_at)


def probes() -> httpx.AsyncClient:
    """The client that health checks call upstreams with."""
    return Process.probe_client
