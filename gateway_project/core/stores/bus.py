"""Words between the processes of one installation: which key to forget, which breaker was forced.

Redis carries them (pub/sub). A note may be lost while a process is cut off, so every
(re)subscription begins with `on_gap`, which must assume that anything was said meanwhile. A silent
connection is noticed within two `PING_SECONDS`; until it is back `is_listening` is False, and
whoever relies on hearing a note must ask the source instead.

A note is text, as it is. One of a later version begins with `LATER` and its number: whoever does
not know that version takes it for a gap.

Without Redis there is one web process: a note reaches its own handlers and nobody listens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from threading import Lock
from typing import Any

from django.conf import settings
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway_project.core.stores import addresses, redis
from gateway_project.core.telemetry.logging import get_logger

PING_SECONDS = 0.3
RECONNECT_SECONDS = 0.2
UNSENT_MAX = 1000
PREFIX = "gw:"
LATER = "\x1f"
log = get_logger("gateway.bus")
Handler = Callable[[str], None]


class Bus:
    """`on` before `start`; `say` from any thread."""

    def __init__(self) -> None:
        self.is_listening = False
        self._handlers: dict[str, tuple[Handler, Callable[[], None]]] = {}
        self._unsent: list[tuple[str, str]] = []
        self._lock = Lock()
        self._listener: asyncio.Task[None] | None = None

    def on(self, channel: str, handler: Handler, on_gap: Callable[[], None]) -> None:
        """Call `handler(note)` for each note, `on_gap()` whenever notes may have been missed."""
        self._handlers[channel] = (handler, on_gap)

    def say(self, channel: str, note: str) -> None:
        """Tell every process, this one at once. Never raises: Redis away is made good later.

        A note that could not be sent is sent by this process' listener when Redis is back; a
        process without one (a command, a worker) can only log it, and others hear of it as late
        as they ask the source again.
        """
        known = self._handlers.get(channel)
        if known is not None:
            known[0](note)
        if settings.REDIS_URL:
            self._send([(channel, note)])

    def _send(self, notes: list[tuple[str, str]]) -> None:
        try:
            pipeline = redis.client().pipeline(transaction=False)
            for channel, note in notes:
                pipeline.publish(PREFIX + channel, note)
            pipeline.execute()
        except (RedisError, OSError) as exc:
            log.warning("bus_message_unsent", notes=len(notes), error=type(exc).__name__)
            with self._lock:
                self._unsent = [*self._unsent, *notes][-UNSENT_MAX:]

    def start(self) -> None:
        """Listen, inside the running event loop; needs `REDIS_URL`."""
        self._listener = asyncio.create_task(self._run(), name="bus")

    async def stop(self) -> None:
        while self._listener is not None and not self._listener.done():
            # Again and again: a cancellation that meets redis-py's own timeout is swallowed by it.
            self._listener.cancel()
            await asyncio.wait([self._listener], timeout=PING_SECONDS)
        self._listener = None
        self.is_listening = False

    async def _run(self) -> None:
        while True:
            client = addresses.async_client(
                settings.REDIS_URL, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)
            )
            try:
                await self._listen(client)
            except Exception as exc:  # noqa: BLE001 - whatever broke it: listen again, from a gap
                if self.is_listening:
                    log.warning("bus_lost", error=type(exc).__name__)
            finally:
                self.is_listening = False
                await client.aclose()
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self, client: Any) -> None:
        async with client.pubsub() as pubsub:
            await pubsub.subscribe(*(PREFIX + channel for channel in self._handlers))
            is_asked = False
            while True:
                message = await pubsub.get_message(timeout=PING_SECONDS)
                if message is not None:
                    is_asked = False
                    self._on_message(message)
                elif is_asked:
                    raise TimeoutError("no answer to a ping")
                else:
                    await pubsub.ping()
                    is_asked = True
                if self._unsent and self.is_listening:
                    with self._lock:
                        unsent, self._unsent = self._unsent, []
                    await asyncio.to_thread(self._send, unsent)

    def _on_message(self, message: dict[str, Any]) -> None:
        if message["type"] not in ("subscribe", "message"):
            return
        channel = message["channel"].decode().removeprefix(PREFIX)
        handler, on_gap = self._handlers[channel]
        if message["type"] == "message":
            note = message["data"].decode(errors="replace")
            if note.startswith(LATER):
                log.warning("bus_note_of_later_version", channel=channel)
                on_gap()
            else:
                handler(note)
            return
        # Also after a reconnection that redis-py made by itself.
        on_gap()
        if message["data"] == len(self._handlers):  # the last of them
            self.is_listening = True


bus = Bus()
