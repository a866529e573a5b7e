"""A proxy whose other side vanishes without a word: it takes all, says nothing, resets nothing."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from gateway_project.tests.loop_thread import LoopThread


class Proxy:
    """`vanish()`: what is open hangs for ever, and what is opened hangs as well, until `heal()`.

    What hung before goes on hanging then: a new host has the address, and knows nothing of it.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._age = 0
        self._is_silent = False
        self._tasks: list[Any] = []  # of those that wait for ever nobody else knows
        self._thread = LoopThread("proxy")
        self._server = self._thread.run(self._start())
        port = self._server.sockets[0].getsockname()[1]
        user = self._parts.netloc.rpartition("@")
        self.url = urlunsplit(self._parts._replace(netloc=f"{user[0]}{user[1]}127.0.0.1:{port}"))

    async def _start(self) -> Any:
        return await asyncio.start_server(self._take, "127.0.0.1", 0)

    def vanish(self) -> None:
        self._is_silent = True
        self._age += 1

    def heal(self) -> None:
        self._is_silent = False

    async def _take(self, reader: Any, writer: Any) -> None:
        self._tasks.append(asyncio.current_task())
        writers = [writer]
        try:
            if self._is_silent:
                await self._swallow(reader)
            there = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            writers.append(there[1])
            await asyncio.gather(self._pass_on(reader, there[1]), self._pass_on(there[0], writer))
        except (OSError, asyncio.CancelledError):
            pass  # one side refused, or the test is over
        finally:
            for one in writers:
                one.transport.abort()

    async def _pass_on(self, reader: Any, writer: Any) -> None:
        age = self._age
        while data := await reader.read(65536):
            if age != self._age:
                await self._swallow(reader)
            writer.write(data)
        if age != self._age:
            await self._swallow(reader)
        writer.close()

    @staticmethod
    async def _swallow(reader: Any) -> None:
        """For ever: also when this side hangs up, of which the other does not hear."""
        while await reader.read(65536):
            pass
        await asyncio.Event().wait()

    def close(self) -> None:
        self._thread.loop.call_soon_threadsafe(self._server.close)
        self._thread.close()
