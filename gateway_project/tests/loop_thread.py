"""An event loop in a thread of its own, for servers that answer while a test waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """`run(work)` waits for what `work` returns; `close()` leaves nothing behind.

    What a loop leaves behind (a task, a connection) is found by the collector in the middle of some
    later test, which then fails for it.
    """

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float = 10) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def cancel(self) -> None:
        """All that is under way, as of answers that nobody waits for any more."""
        self.run(self._cancel(), 30)

    def close(self) -> None:
        self.cancel()
        self.run(self._hang_up())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _hang_up(self) -> None:
        # The loop's own, by file: one with unsent bytes outlives its server and its client.
        for transport in list(getattr(self.loop, "_transports", {}).values()):
            transport.abort()
        await asyncio.sleep(0)  # in which they close
        await self.loop.shutdown_asyncgens()
