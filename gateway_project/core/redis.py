"""One Redis connection per process and event loop, shared by all requests in flight.

Commands that arrive while a batch is on its way leave together in the next one, so a hundred
concurrent requests cost a handful of round trips (Redis pipelining, without the callers knowing).
redis-py does the connecting, authentication and TLS; only the sharing is ours.

It refuses to wait: a batch has `timeout_seconds` in all, and after a failed connect every command
fails at once for `backoff_seconds`, so that a dead Redis slows nobody down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any

import hiredis
from django_redis import get_redis_connection
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import ResponseError

from gateway_project.core.caching import ignore

BATCH_MAX = 256


class RedisUnavailable(Exception):
    """Redis did not answer: refused, reset, too slow, or resting after one of these."""


def pack(*command: bytes | str | int | float) -> bytes:
    """Encode one command for the wire; constant commands are worth packing once."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


class RedisPipe:
    """Submit packed commands, await their replies. Made and used inside one event loop."""

    def __init__(
        self, url: str, *, timeout_seconds: float = 0.25, backoff_seconds: float = 1.0
    ) -> None:
        # One connection, never from the pool: the pool only parses the URL for us. No timeouts
        # of its own: the batch has one, and a timer for every read would double its cost.
        pool: Any = ConnectionPool.from_url(url, socket_timeout=None, socket_connect_timeout=None)
        self._connection = pool.make_connection()
        self._timeout_seconds = timeout_seconds
        self._backoff_seconds = backoff_seconds
        self._resting_until = 0.0
        self._pending: list[tuple[bytes, asyncio.Future[Any]]] = []
        self._wake = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self.trips = 0

    def start(self) -> None:
        self._pump = asyncio.create_task(self._run(), name="redis-pipe")

    async def close(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._connection.disconnect(nowait=True)

    def submit(self, packed: bytes) -> asyncio.Future[Any]:
        """Send one packed command with the next batch.

        The future gives the reply (bytes undecoded), or raises `RedisUnavailable`, or the
        `redis.ResponseError` that Redis answered to this command alone.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._pump is None or self._pump.done():
            future.set_exception(RedisUnavailable("closed"))
            return future
        if self._resting_until > monotonic():
            future.set_exception(RedisUnavailable("resting after a failure"))
            return future
        self._pending.append((packed, future))
        self._wake.set()
        return future

    async def ping(self) -> None:
        await self.submit(pack("PING"))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            batch = self._pending[:BATCH_MAX]
            del self._pending[:BATCH_MAX]
            if not self._pending:
                self._wake.clear()
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await self._exchange(batch)
            except asyncio.CancelledError:
                self._fail([*batch, *self._pending], RedisUnavailable("closing"))
                raise
            except Exception as exc:  # noqa: BLE001 - a pump that ended would leave all callers waiting
                # Not only Redis' and the system's errors: uvloop says RuntimeError after a reset.
                # Replies still under way would be taken for those of the next batch.
                await self._connection.disconnect(nowait=True)
                self._resting_until = monotonic() + self._backoff_seconds
                self._fail([*batch, *self._pending], RedisUnavailable(type(exc).__name__))
                self._pending.clear()
                self._wake.clear()

    async def _exchange(self, batch: Sequence[tuple[bytes, asyncio.Future[Any]]]) -> None:
        connection = self._connection
        if not connection.is_connected:
            await connection.connect()
        self.trips += 1
        await connection.send_packed_command([packed for packed, _ in batch], check_health=False)
        for _, future in batch:
            try:
                reply = await connection.read_response(disable_decoding=True)
            except ResponseError as exc:  # this command's own; the connection is fine
                if not future.done():
                    future.set_exception(exc)
            else:
                if not future.done():
                    future.set_result(reply)

    @staticmethod
    def _fail(batch: Sequence[tuple[bytes, asyncio.Future[Any]]], exc: Exception) -> None:
        for _, future in batch:
            if not future.done():
                future.set_exception(exc)


_pipe: RedisPipe | None = None


def open_pipe(url: str) -> RedisPipe:
    """Make the pipe of this process; called once, in the lifespan, inside the event loop."""
    global _pipe
    _pipe = RedisPipe(url)
    _pipe.start()
    return _pipe


async def close_pipe() -> None:
    global _pipe
    if _pipe is not None:
        await _pipe.close()
        _pipe = None


def pipe() -> RedisPipe:
    """The pipe that the lifespan opened."""
    if _pipe is None:
        raise RuntimeError("the application was not started: its lifespan opens the Redis pipe")
    return _pipe


def is_open() -> bool:
    return _pipe is not None


def send_behind(command: bytes) -> None:
    """Send a packed command that nobody waits for; lost when Redis is away."""
    pipe().submit(command).add_done_callback(ignore)


def pairs(reply: Any) -> dict[bytes, bytes]:
    """A hash as Redis answers it: a list in RESP2, a map in RESP3."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def client() -> Any:
    """The synchronous client of the control plane: django-redis' pooled connection."""
    return get_redis_connection("default")
