"""A classifier off the event loop: threads of its own, and texts under way at once run together.

Stands alone, as `classifier` does.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from detection.engines.classifier import Classifier, Facts, Found, ModelUnusable, NoScore

TEXTS_AT_ONCE, CHARS_AT_ONCE = 16, 16_000
"""One run of the model; who comes later waits for it, so it must not be long."""
WAITING_MAX = 512


class Busy(Exception):
    """More texts wait than may."""


class _Asked(NamedTuple):
    text: str
    is_data: bool
    answer: asyncio.Future[Found]


class Batcher:
    """One model for one event loop. `workers` runs at once; each uses as many threads as the
    classifier was loaded with."""

    def __init__(self, load: Callable[[], Classifier], *, workers: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="classifier")
        self._workers = workers
        self._running = 0
        self._waiting: deque[_Asked] = deque()
        self._runs: set[asyncio.Task[None]] = set()
        self._loading = asyncio.ensure_future(self._loop.run_in_executor(self._pool, load))
        self._loading.add_done_callback(_seen)

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting)

    @property
    def facts(self) -> Facts | None:
        """None until the model is loaded, and when it could not be."""
        is_there = self._loading.done() and not self._loading.cancelled()
        if not is_there or self._loading.exception() is not None:
            return None
        return self._loading.result().facts

    @property
    def trouble(self) -> str:
        """Why there is no model; empty while it is loaded, and when it is."""
        if not self._loading.done() or self._loading.cancelled():
            return ""
        found = self._loading.exception()
        return "" if found is None else str(found)

    async def loaded(self) -> Facts:
        """Raises `ModelUnusable`."""
        return (await asyncio.shield(self._loading)).facts

    async def judge(self, text: str, *, is_data: bool = False) -> Found:
        """Raises `Busy`, `ModelUnusable` or `NoScore`."""
        if not self._loading.done():
            await asyncio.shield(self._loading)
        if self.facts is None:
            raise ModelUnusable(self.trouble)
        if len(self._waiting) >= WAITING_MAX:
            raise Busy
        asked = _Asked(text, is_data, self._loop.create_future())
        self._waiting.append(asked)
        self._begin()
        return await asked.answer

    async def close(self) -> None:
        self._loading.cancel()
        for asked in self._waiting:
            asked.answer.cancel()
        self._waiting.clear()
        await asyncio.gather(*self._runs, return_exceptions=True)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        while self._waiting and self._running < self._workers:
            some = self._next()
            if not some:
                return
            self._running += 1
            run = asyncio.create_task(self._run(some))
            self._runs.add(run)
            run.add_done_callback(self._runs.discard)

    def _next(self) -> list[_Asked]:
        some: list[_Asked] = []
        chars = 0
        while self._waiting and len(some) < TEXTS_AT_ONCE:
            asked = self._waiting[0]
            if some and chars + len(asked.text) > CHARS_AT_ONCE:
                break
            self._waiting.popleft()
            if not asked.answer.done():  # else whoever asked went away
                some.append(asked)
                chars += len(asked.text)
        return some

    async def _run(self, some: list[_Asked]) -> None:
        texts = [(asked.text, asked.is_data) for asked in some]
        try:
            classifier = self._loading.result()
            found = await self._loop.run_in_executor(self._pool, classifier.judge_many, texts)
        except Exception as exc:  # noqa: BLE001 - it is theirs, who asked
            for asked in some:
                if not asked.answer.done():
                    asked.answer.set_exception(exc)
        else:
            for asked, one in zip(some, found, strict=True):
                if asked.answer.done():
                    continue
                if math.isnan(one.score):
                    asked.answer.set_exception(NoScore())
                else:
                    asked.answer.set_result(one)
        finally:
            self._running -= 1
            self._begin()


def _seen(loading: asyncio.Future[Classifier]) -> None:
    if not loading.cancelled():
        loading.exception()
