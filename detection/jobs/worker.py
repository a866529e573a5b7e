"""Works on jobs: one in each worker process, in the background (`core/background.py`).

Some chunks are under way at once, with all of their items at the engine together. One thread
claims, another writes results, which therefore come in batches when there is much to do. Each
`LOOK_SECONDS` the leases of what is under way are renewed, and what was cancelled meanwhile is let
go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any, TypeVar
from uuid import UUID

from django import db
from django.conf import settings

from accounts.models import new_id
from detection.engines import go
from detection.jobs import judging, store
from detection.jobs.judging import Judged
from gateway_project.core.background import Background, in_thread
from gateway_project.core.stores import redis
from gateway_project.core.stores.bus import bus
from gateway_project.core.telemetry.logging import get_logger

T = TypeVar("T")
CHUNKS_AT_ONCE = 4
LOOK_SECONDS = 0.4
RETRY_SECONDS = 0.5  # while results cannot be written
STOP_SECONDS = 10.0
log = get_logger("gateway.jobs")


class Worker:
    """Made and used inside one event loop."""

    def __init__(self) -> None:
        self.id = new_id()
        self._claimer = ThreadPoolExecutor(1, thread_name_prefix="jobs-claim")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="jobs-write")
        self._under_way: dict[UUID, asyncio.Task[None]] = {}
        self._done: list[store.Done] = []
        self._writing: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._is_stopping = False

    def wake(self) -> None:
        self._changed.set()

    def stop(self) -> None:
        self._is_stopping = True
        self._changed.set()

    async def drain(self) -> None:
        keeping = asyncio.create_task(self._keep(), name="jobs-leases")
        try:
            while True:
                self._changed.clear()
                self._write_behind()
                works = await self._claim()
                if works or self._changed.is_set():
                    continue
                if not self._under_way and self._writing is None:
                    return
                await self._changed.wait()
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    def _write_behind(self) -> None:
        """Begin to write what is done, unless that is under way. Raises what failed in it."""
        if self._writing is not None and self._writing.done():
            writing, self._writing = self._writing, None
            writing.result()
        if self._done and self._writing is None:
            done, self._done = self._done, []
            self._writing = asyncio.create_task(self._write(done))
            self._writing.add_done_callback(lambda _: self._changed.set())

    async def _claim(self) -> list[store.Work]:
        places = CHUNKS_AT_ONCE - len(self._under_way)
        if places <= 0 or self._is_stopping:
            return []
        works = await in_thread(self._claimer, store.claim, self.id, places)
        for work in works:
            self._under_way[work.chunk_id] = asyncio.create_task(self._work(work))
        return works

    async def _work(self, work: store.Work) -> None:
        try:
            judged = await self._judged(work)
        except Exception as exc:
            # It stays claimed until its lease ends; then it is tried again, some times.
            log.error("chunk_failed", chunk=str(work.chunk_id), exc_info=exc)
        else:
            self._done.append(store.Done(work, judged))
        finally:
            del self._under_way[work.chunk_id]
            self._changed.set()

    @staticmethod
    async def _judged(work: store.Work) -> list[Judged]:
        if work.is_hopeless:
            items = [judging.Item(item.id, None) for item in work.items]
            return await judging.judge(items, work.origin)
        return await _at_home(judging.judge(work.items, work.origin))

    async def _write(self, done: list[store.Done]) -> None:
        """Insist while the leases last; afterwards others do it again."""
        until = monotonic() + store.LEASE.total_seconds()
        while True:
            try:
                await in_thread(self._writer, store.finish, self.id, done)
            except (db.OperationalError, db.InterfaceError) as exc:
                log.error("job_results_unwritten", chunks=len(done), error=type(exc).__name__)
                if monotonic() > until:
                    return
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            asked = [*self._under_way, *(done.work.chunk_id for done in self._done)]
            if not asked:
                continue
            try:
                kept = await in_thread(self._writer, store.renew, self.id, asked)
            except (db.OperationalError, db.InterfaceError) as exc:
                log.error("job_leases_unrenewed", chunks=len(asked), error=type(exc).__name__)
                continue
            for chunk_id in asked:
                task = self._under_way.get(chunk_id)
                if chunk_id not in kept and task is not None:
                    task.cancel()


async def _at_home(work: Coroutine[Any, Any, T]) -> T:
    """Run it in the loop that the engine's client and Redis' pipe belong to.

    That is this one, but for the embedded worker: its web process has them already.
    """
    home = go.client().loop
    if home is asyncio.get_running_loop():
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, home))


@asynccontextmanager
async def opened() -> AsyncIterator[Worker]:
    """A worker with all that it needs."""
    async with AsyncExitStack() as held:
        if not go.is_open():
            if settings.REDIS_URL:
                redis.open_pipe(settings.REDIS_URL)
                held.push_async_callback(redis.close_pipe)
                bus.start()
                held.push_async_callback(bus.stop)
            go.open_client()
            held.push_async_callback(go.close_client)
        yield Worker()


background = Background("jobs", opened, stop_seconds=STOP_SECONDS)
"""The worker of this process."""


def work_all() -> None:
    """Do all that waits and return when it is written; for commands and tests."""

    async def run() -> None:
        async with opened() as worker:
            await worker.drain()

    asyncio.run(run())
