"""Judges chunks: what `detection.tasks.judge_chunk` does in a worker process.

The task's own thread claims the chunk and writes its results. In between it waits, while the texts
are asked about in the process's one event loop (`core/background.py`): all of a chunk at once, and
beside them those of the tasks that run in other threads. Each `RENEW_SECONDS` the leases of all
that is under way are renewed together, and what was cancelled meanwhile is let go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any, TypeVar
from uuid import UUID

from django import db
from django.conf import settings

from detection import shadows
from detection.engines import registry
from detection.jobs import judging, store
from detection.jobs.judging import Judged
from detection.ledger import ledger
from gateway_project.core.background import Background, in_thread
from gateway_project.core.stores import database, redis
from gateway_project.core.stores.bus import bus
from gateway_project.core.stores.refused import is_refused, reason
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.loops import Loop

T = TypeVar("T")
RENEW_SECONDS = 0.4
RETRY_SECONDS = 0.5  # while results cannot be written
CHUNK_SECONDS_MAX = 120
"""Far more than the engine and, after it, the embedded detector may take for a chunk."""
STOP_SECONDS = 10.0
_loop = Loop("jobs.leases")
log = get_logger("gateway.jobs")


def judge_chunk(chunk_id: UUID) -> bool:
    """Judge the chunk and write its results; False when there was nothing to do, or no more.

    After any failure the chunk waits again, as it was. Raises what failed, `TimeoutError` after
    `CHUNK_SECONDS_MAX`.
    """
    work = store.claim(chunk_id)
    if work is None:
        return False
    database.let_go()
    running = background.submit(partial(Judge.judge, work=work))
    try:
        judged = running.result(CHUNK_SECONDS_MAX)
        return judged is not None and _write(work, judged)
    except BaseException:  # Celery's time limit and a second Ctrl-C as well
        running.cancel()
        store.release(work.chunk_id, work.run)
        raise


def _write(work: store.Work, judged: list[Judged]) -> bool:
    """Insist while the lease lasts: else the engine would be asked for all of it again."""
    until = monotonic() + store.LEASE.total_seconds()
    while True:
        try:
            return store.finish(work, judged)
        except (db.OperationalError, db.InterfaceError) as exc:
            if is_refused(exc):
                return _give_up(work, exc)
            log.error("job_results_unwritten", error=type(exc).__name__)
            if monotonic() > until:
                raise
            db.close_old_connections()
            time.sleep(RETRY_SECONDS)
        except Exception as exc:
            if not is_refused(exc):
                raise
            return _give_up(work, exc)


def _give_up(work: store.Work, error: Exception) -> bool:
    """They would be refused again, however often the engine is asked for them."""
    log.error("job_results_refused", chunk=str(work.chunk_id), error=reason(error))
    return store.fail(work, error)


class Judge:
    """What is under way in this process. Made and used inside one event loop."""

    def __init__(self) -> None:
        self._renewer = ThreadPoolExecutor(1, thread_name_prefix="jobs-leases")
        self._under_way: dict[UUID, tuple[store.Work, asyncio.Task[list[Judged]]]] = {}  # by run
        self._renewing: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Nothing to do: what is under way ends with its tasks."""

    async def judge(self, work: store.Work) -> list[Judged] | None:
        """None: it was cancelled meanwhile, or is another's."""
        task = asyncio.create_task(_judged(work))
        self._under_way[work.run] = work, task
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(self._renew(), name="jobs-leases")
        try:
            return await task
        except asyncio.CancelledError:
            if work.run in self._under_way:  # not let go: it is we who are cancelled
                raise
            return None
        finally:
            self._under_way.pop(work.run, None)

    async def _renew(self) -> None:
        while self._under_way:
            await asyncio.sleep(RENEW_SECONDS)
            asked = dict(self._under_way)
            if not asked:
                return
            try:
                held = await in_thread(self._renewer, store.renew, [w for w, _ in asked.values()])
            except Exception as exc:  # noqa: BLE001 - leases of the others have to be kept
                log.error("job_leases_unrenewed", chunks=len(asked), error=type(exc).__name__)
                await _loop.afailed(exc)
                continue
            await _loop.asucceeded()
            for run in asked.keys() - held:
                if run in self._under_way:  # else it ended while we asked
                    _, task = self._under_way.pop(run)
                    task.cancel()


async def _judged(work: store.Work) -> list[Judged]:
    if work.is_exhausted:
        items = [judging.Item(item.id, None) for item in work.items]
        return await judging.judge(items, work.origin)
    return await _in_client_loop(judging.judge(work.items, work.origin, turns=judging.BEHIND))


async def _in_client_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run it in the loop that the engine's client and Redis' connection belong to.

    That is this one, but for the embedded worker: its web process has them already.
    """
    home = registry.engines().loop
    if home is asyncio.get_running_loop():
        return await work
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, home))


@asynccontextmanager
async def opened() -> AsyncIterator[Judge]:
    """A judge with all that it needs."""
    async with AsyncExitStack() as held:
        if not registry.is_open():
            if settings.REDIS_URL:
                redis.open_connection(settings.REDIS_URL, settings.CACHE_REDIS_URL)
                held.push_async_callback(redis.close_connection)
                bus.start()
                held.push_async_callback(bus.stop)
            ledger.start()
            held.push_async_callback(ledger.stop)
            registry.open_engines()
            held.push_async_callback(registry.close_engines)
            held.push_async_callback(shadows.stop)
        yield Judge()


background = Background("jobs", opened, stop_seconds=STOP_SECONDS)
"""The judge of this process."""
