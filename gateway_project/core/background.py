"""Work of a worker process that outlives a task: a thread with an event loop of its own.

Celery's children know no asyncio, and clients and connections are worth keeping. Beat wakes the
thread each second; once awake it goes on until nothing is left to do.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import ParamSpec, Protocol, TypeVar

import uvloop
from django import db

from gateway_project.core.telemetry.logging import get_logger

P = ParamSpec("P")
T = TypeVar("T")
log = get_logger("gateway.background")


class Rounds(Protocol):
    """What is done. Made and used inside the thread's event loop."""

    async def drain(self) -> None:
        """Do what there is to do, until nothing is left."""

    def wake(self) -> None:
        """Look for work once more before ending; called inside the loop."""

    def stop(self) -> None:
        """Begin nothing more; `drain` ends when what is under way has. Called inside the loop."""


class Background:
    """One for each kind of work; its thread starts at the first `wake`, in each process anew.

    `opened` gives the rounds and closes what they hold.
    """

    def __init__(
        self,
        name: str,
        opened: Callable[[], AbstractAsyncContextManager[Rounds]],
        *,
        stop_seconds: float,
    ) -> None:
        self.name = name
        self.opened = opened
        self.stop_seconds = stop_seconds
        self._lock = threading.Lock()
        self._running: _Thread | None = None

    def wake(self) -> None:
        """Have this process look for work; returns at once."""
        with self._lock:
            if self._running is None or not self._running.is_alive:
                self._running = _Thread(self)
            self._running.wake()

    def stop(self) -> None:
        """Before the process ends; waits for what is under way, at most `stop_seconds`."""
        with self._lock:
            if self._running is not None and self._running.is_alive:
                self._running.stop()
            self._running = None


class _Thread:
    def __init__(self, background: Background) -> None:
        self.pid = os.getpid()
        self._background = background
        self._loop = uvloop.new_event_loop()
        self._woken = asyncio.Event()
        self._rounds: Rounds | None = None
        self._is_stopping = False
        self._thread = threading.Thread(target=self._main, name=background.name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        self._loop.call_soon_threadsafe(self._wake)

    @property
    def is_alive(self) -> bool:
        """False also in a process that was forked off: threads are not."""
        return self.pid == os.getpid() and self._thread.is_alive()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(self._background.stop_seconds)

    def _wake(self) -> None:
        self._woken.set()
        if self._rounds is not None:
            self._rounds.wake()

    def _stop(self) -> None:
        self._is_stopping = True
        if self._rounds is not None:
            self._rounds.stop()
        self._woken.set()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())

    async def _run(self) -> None:
        async with self._background.opened() as rounds:
            self._rounds = rounds
            while not self._is_stopping:
                await self._woken.wait()
                self._woken.clear()
                try:
                    await rounds.drain()
                except Exception as exc:
                    name = self._background.name
                    log.error("round_failed", work=name, error=type(exc).__name__, exc_info=exc)


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
