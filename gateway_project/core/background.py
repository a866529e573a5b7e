"""An event loop in a worker process: a thread of its own, beside Celery's tasks.

Tasks know no asyncio, and clients and connections are worth keeping between them. The loop starts
with the first work, in each process anew, and holds what the work needs until the process ends.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import uvloop
from django import db

P = ParamSpec("P")
T = TypeVar("T")


class Stoppable(Protocol):
    def stop(self) -> None:
        """Begin nothing more; called inside the loop."""


R = TypeVar("R", bound=Stoppable)


class Background(Generic[R]):
    """One for each kind of work. `opened` gives the runner of that work and closes what it holds;
    both happen inside the loop.
    """

    def __init__(
        self,
        name: str,
        opened: Callable[[], AbstractAsyncContextManager[R]],
        *,
        stop_seconds: float,
    ) -> None:
        self.name = name
        self.opened = opened
        self.stop_seconds = stop_seconds
        self._lock = threading.Lock()
        self._thread: _Thread[R] | None = None

    def submit(self, work: Callable[[R], Coroutine[Any, Any, T]]) -> Future[T]:
        """Run `work(runner)` in the loop. The future raises what `opened` raised, too."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive:
                self._thread = _Thread(self)
            return self._thread.submit(work)

    def submit_if_running(self, work: Callable[[R], Coroutine[Any, Any, Any]]) -> None:
        """The same, but for this alone no loop is started."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive:
                self._thread.submit(work)

    def stop(self) -> None:
        """Before the process ends; waits for what is under way, at most `stop_seconds`."""
        with self._lock:
            if self._thread is not None and self._thread.is_alive:
                self._thread.stop()
            self._thread = None


class _Thread(Generic[R]):
    def __init__(self, background: Background[R]) -> None:
        self.pid = os.getpid()
        self._background = background
        self._loop = uvloop.new_event_loop()
        self._runner: asyncio.Future[R] = self._loop.create_future()
        self._stopping = asyncio.Event()
        self._under_way: set[asyncio.Task[Any]] = set()
        self._is_over = False  # work that came now would never run
        self._thread = threading.Thread(target=self._main, name=background.name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False also in a process that was forked off: threads are not."""
        return self.pid == os.getpid() and self._thread.is_alive() and not self._is_over

    def submit(self, work: Callable[[R], Coroutine[Any, Any, T]]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(self._call(work), self._loop)

    async def _call(self, work: Callable[[R], Coroutine[Any, Any, T]]) -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._under_way.add(task)
        try:
            return await work(await asyncio.shield(self._runner))
        finally:
            self._under_way.discard(task)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(self._background.stop_seconds)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._is_over = True
            self._loop.close()

    async def _run(self) -> None:
        try:
            async with self._background.opened() as runner:
                self._runner.set_result(runner)
                await self._stopping.wait()
                runner.stop()
                while self._under_way:
                    await asyncio.wait(self._under_way)
        except Exception as exc:
            if self._runner.done():
                raise
            self._is_over = True  # the next work starts another thread
            self._runner.set_exception(exc)
            while self._under_way:
                await asyncio.wait(self._under_way)


async def in_thread(
    executor: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call `function` in a thread that may use the ORM and keeps its connection."""

    def call() -> T:
        db.close_old_connections()
        try:
            return function(*args, **kwargs)
        finally:
            db.close_old_connections()

    return await asyncio.get_running_loop().run_in_executor(executor, call)
