"""One web process: uvicorn's server, with a stop that a proxy in front can follow."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import suppress
from time import monotonic
from types import FrameType

import uvicorn

from gateway_project.server.handshakes import accepted, refuse_handshakes

# How long connections stay open behind the listeners: one that was just accepted has not sent its
# request yet, and an idle one may be about to.
LINGER_SECONDS = 1.0
HANDSHAKE_SECONDS = 0.02  # with the filter: for those that have begun when the listeners close


class Server(uvicorn.Server):
    """One web process. uvicorn's own answer to SIGTERM is to close its listeners at once."""

    _closes_at: float | None = None
    _wakes: asyncio.Event | None = None
    _loop: asyncio.AbstractEventLoop
    _is_last = False  # nobody else goes on listening on this port
    _lingers = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not handed on to uvicorn: it would end the process by the same signal, not with code 0.
        if not self.started:  # nobody was served yet, and the application may be half imported
            self.should_exit = True
            return
        from django.conf import settings

        from gateway_project.server.lifespan import Process

        is_first = not Process.leaving
        Process.leaving = True
        if is_first:
            self._is_last = sig == signal.SIGTERM
        if sig == signal.SIGTERM and is_first and settings.DRAIN_SECONDS:
            Process.ready = False
            self._closes_at = monotonic() + settings.DRAIN_SECONDS
        elif is_first or sig == signal.SIGINT or self.config.workers == 1:
            # A supervisor says SIGINT: of SIGTERM its workers may get two, one of them from
            # whoever stops the whole group (systemd does).
            self._lingers = bool(settings.DRAIN_SECONDS)
            self.should_exit = True
        if self._wakes is not None:
            self._loop.call_soon_threadsafe(self._wakes.set)

    async def main_loop(self) -> None:
        """uvicorn's looks ten times a second whether it should end. This one is told."""
        self._loop, self._wakes = asyncio.get_running_loop(), asyncio.Event()
        while not await self.on_tick(0):
            self._wakes.clear()
            wait = 1.0  # what the header `Date` counts in
            if self._closes_at is not None:
                wait = min(wait, max(0.0, self._closes_at - monotonic()))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wakes.wait()

    async def on_tick(self, counter: int) -> bool:
        if self._closes_at is not None and monotonic() >= self._closes_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        from django.conf import settings

        if self._is_last and settings.SERVER_CLOSE_FILTER:
            for listener in sockets or []:
                refuse_handshakes(listener)
            await asyncio.sleep(HANDSHAKE_SECONDS)
        # The kernel resets what it has accepted and we have not when the last listener closes: no
        # await in between.
        late = [connection for listener in sockets or [] for connection in accepted(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in late:
            await loop.connect_accepted_socket(self._protocol, connection)
        give_up = monotonic() + LINGER_SECONDS * self._lingers
        while self.server_state.connections and monotonic() < give_up:  # noqa: ASYNC110 - uvicorn's set
            await asyncio.sleep(0.02)
        await super().shutdown()

    def _protocol(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
