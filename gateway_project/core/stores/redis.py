"""One Redis connection per process and event loop, shared by all requests in flight.

Commands that arrive while a batch is on its way leave together in the next one, so a hundred
concurrent requests cost a handful of round trips (Redis pipelining, without the callers knowing).
redis-py does the connecting, authentication and TLS, hiredis reads the replies; only the sharing
is ours.

It refuses to wait: connecting and each batch have `timeout_seconds`, and after a failure every
command fails at once for `backoff_seconds`, so that a dead Redis slows nobody down. And it is
bounded in bytes: a batch, what waits for the next, and a single command, which would make all the
others late and then fail with it.

What is sent in bulk behind the requests has a connection of its own: on theirs the next batch of
limits would wait for its reply. Scores have one as well where `CACHE_REDIS_URL` names another
Redis, which may forget: the one that counts limits must not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import Any

import hiredis
from django_redis import get_redis_connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from gateway_project.core.stores.addresses import async_pool
from gateway_project.core.stores.caching import ignore
from gateway_project.core.telemetry.metrics import bound_reached

BATCH_MAX = 256
BATCH_BYTES_MAX = 512 << 10
COMMAND_BYTES_MAX = 1 << 20
WAITING_BYTES_MAX = 16 << 20
LAST_LOOK_SECONDS = 0.01
SOON_SECONDS = 0.002
NOTHING = object()  # what the reader gives while a reply is not whole


class RedisUnavailable(Exception):
    """Redis did not answer: refused, reset, too slow, or resting after one of these."""


class CommandTooLarge(ResponseError):
    """Not sent: it fails alone."""


def pack(*command: bytes | str | int | float) -> bytes:
    """Encode one command for the wire; constant commands are worth packing once."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


class PipelinedConnection(asyncio.Protocol):
    """Submit packed commands, await their replies. Started and used inside one event loop."""

    def __init__(
        self, url: str, *, timeout_seconds: float = 0.25, backoff_seconds: float = 1.0
    ) -> None:
        # One connection, never from the pool: the pool only knows where to.
        self._pool: Any = async_pool(url, socket_timeout=None, socket_connect_timeout=None)
        self._connection: Any = self._pool.make_connection()  # type: ignore[no-untyped-call]
        self._timeout_seconds = timeout_seconds
        self._backoff_seconds = backoff_seconds
        self._backing_off_until = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None  # None: closed
        self._transport: asyncio.WriteTransport | None = None
        self._reader = hiredis.Reader()
        self._connecting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sent_at = 0.0
        self._is_busy = False  # a batch is about to leave, or on its way
        self._is_urgent = False  # something waits for the next one
        self._soon: asyncio.TimerHandle | None = None
        self._pending: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._pending_bytes = 0
        self._waiting: deque[asyncio.Future[Any]] = deque()  # sent, in the order of the replies
        self.round_trips = 0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        self._loop = None
        if self._connecting is not None:
            self._connecting.cancel()
        self._fail("closing")
        await self._connection.disconnect(nowait=True)
        await self._pool.aclose()

    def submit(self, packed: bytes, *, can_wait: bool = False) -> asyncio.Future[Any]:
        """Send one packed command with the next batch.

        One that `can_wait` goes with what others send in the next `SOON_SECONDS`: a batch of its
        own would cost as much as theirs. The future gives the reply (bytes undecoded), or raises
        `RedisUnavailable`, or the `redis.ResponseError` that Redis answered to this command alone
        (`CommandTooLarge`: we).
        """
        loop = self._loop
        if loop is None:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.set_exception(RedisUnavailable("closed"))
            return future
        future = loop.create_future()
        if self._backing_off_until > monotonic():
            future.set_exception(RedisUnavailable("resting after a failure"))
            return future
        if len(packed) > COMMAND_BYTES_MAX:
            bound_reached.labels("redis_command").inc()
            future.set_exception(CommandTooLarge(f"a command of {len(packed)} bytes"))
            return future
        if self._pending_bytes + len(packed) > WAITING_BYTES_MAX:
            bound_reached.labels("redis_waiting").inc()
            future.set_exception(RedisUnavailable("too much is waiting for it"))
            return future
        self._pending.append((packed, future))
        self._pending_bytes += len(packed)
        self._is_urgent = self._is_urgent or not can_wait
        self._see_to_pending()
        return future

    def _see_to_pending(self) -> None:
        if self._is_busy or not self._pending or self._loop is None:
            return
        if self._is_urgent:
            self._is_busy = True
            self._loop.call_soon(self._send)
        elif self._soon is None:
            self._soon = self._loop.call_later(SOON_SECONDS, self._wait_no_longer)

    def _wait_no_longer(self) -> None:
        self._soon = None
        self._is_urgent = bool(self._pending)
        self._see_to_pending()

    def backlog(self) -> tuple[int, int]:
        """Commands without a reply yet, and the bytes of those that have not left."""
        return len(self._pending) + len(self._waiting), self._pending_bytes

    async def ping(self) -> None:
        await self.submit(pack("PING"))

    def _send(self) -> None:
        if self._loop is None or not self._pending or self._waiting:
            return  # closed, failed since, or another call was quicker
        if self._transport is None:
            if self._connecting is None or self._connecting.done():
                self._connecting = self._loop.create_task(self._connect())
            return
        batch: list[bytes] = []
        size = 0
        while self._pending and len(batch) < BATCH_MAX:
            packed, future = self._pending[0]
            if batch and size + len(packed) > BATCH_BYTES_MAX:
                break
            self._pending.popleft()
            self._waiting.append(future)
            batch.append(packed)
            size += len(packed)
        self._pending_bytes -= size
        self._is_urgent = bool(self._pending)
        self._sent_at = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_seconds, self._look)
        self.round_trips += 1
        try:
            self._transport.write(b"".join(batch))
        except RuntimeError as exc:  # uvloop's word for a transport that is closed already
            self._give_up(type(exc).__name__)

    async def _connect(self) -> None:
        connection = self._connection
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await connection.disconnect(nowait=True)
                await connection.connect()
        except Exception as exc:  # noqa: BLE001 - a caller left waiting would wait for ever
            # Not only Redis' and the system's errors: uvloop says RuntimeError after a reset.
            self._give_up(type(exc).__name__)
            return
        # From here on the socket is ours: redis-py's way to a reply is a chain of coroutines with
        # a timer each, a fifth of what a cached answer costs.
        self._reader = hiredis.Reader(
            notEnoughData=NOTHING, replyError=connection._parser.parse_error
        )
        self._transport = connection._writer.transport
        self._transport.set_protocol(self)
        self._send()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets(False)) is not NOTHING:
                # Such as "loading its data"; or it is a replica now, and will refuse every write.
                if isinstance(reply, RedisConnectionError | ReadOnlyError):
                    raise reply
                if isinstance(reply, hiredis.PushNotification):
                    continue
                future = self._waiting.popleft()
                if future.done():
                    continue
                if isinstance(reply, ResponseError):  # this command's own
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (hiredis.HiredisError, RedisConnectionError, ReadOnlyError, IndexError) as exc:
            self._give_up(type(exc).__name__)
            return
        if not self._waiting and self._is_busy:
            self._is_busy = self._is_urgent
            if self._is_urgent:
                self._send()
            else:
                self._see_to_pending()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiting:
            self._give_up(type(exc).__name__ if exc else "closed by Redis")

    def _look(self) -> None:
        # One timer while there is traffic, not one for each batch.
        self._timer = None
        if self._loop is None or not self._waiting:
            return
        left = self._sent_at + self._timeout_seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            # A loop that was blocked runs its timers before it reads what came meanwhile.
            self._timer = self._loop.call_later(
                LAST_LOOK_SECONDS, self._look_once_more, self._sent_at
            )

    def _look_once_more(self, sent_at: float) -> None:
        if self._waiting and self._sent_at == sent_at:
            self._give_up("TimeoutError")
        else:
            self._look()

    def _give_up(self, reason: str) -> None:
        """Fail all callers, and rest: a late reply would be taken for that of another command."""
        self._backing_off_until = monotonic() + self._backoff_seconds
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        futures = [*self._waiting, *(future for _, future in self._pending)]
        self._waiting.clear()
        self._pending.clear()
        self._pending_bytes = 0
        self._is_busy = self._is_urgent = False
        for future in futures:
            if not future.done():
                future.set_exception(RedisUnavailable(reason))


_shared: PipelinedConnection | None = None
_bulk: PipelinedConnection | None = None
_cache: PipelinedConnection | None = None


def open_connection(url: str, cache_url: str = "") -> PipelinedConnection:
    """Make the connections of this process; called once, in the lifespan, inside the event loop."""
    global _shared, _bulk, _cache
    _shared, _bulk = PipelinedConnection(url), PipelinedConnection(url)
    _cache = PipelinedConnection(cache_url) if cache_url and cache_url != url else None
    for one in _opened():
        one.start()
    return _shared


async def close_connection() -> None:
    global _shared, _bulk, _cache
    for one in _opened():
        await one.close()
    _shared = _bulk = _cache = None


def _opened() -> list[PipelinedConnection]:
    return [one for one in (_shared, _bulk, _cache) if one is not None]


def connection() -> PipelinedConnection:
    """The connection that the lifespan opened."""
    if _shared is None:
        raise RuntimeError("the application was not started: its lifespan connects to Redis")
    return _shared


def bulk_connection() -> PipelinedConnection:
    """To the same Redis, for what is large and behind the requests. It connects when it is used."""
    return _bulk or connection()


def cache_connection() -> PipelinedConnection:
    """To the Redis that may forget: of its own, or the only one."""
    return _cache or connection()


def backlog() -> tuple[int, int]:
    """Commands of all connections without a reply yet, and the bytes of those not yet sent."""
    counts, sizes = zip(*(one.backlog() for one in _opened()), strict=True)
    return sum(counts), sum(sizes)


def is_open() -> bool:
    return _shared is not None


def send_behind(command: bytes) -> None:
    """Send a packed command that nobody waits for; lost when Redis is away."""
    connection().submit(command).add_done_callback(ignore)


def send_from_thread(command: bytes) -> None:
    """`send_behind` for threads other than the loop's."""
    loop = connection()._loop
    if loop is not None:
        loop.call_soon_threadsafe(send_behind, command)


def pairs(reply: Any) -> dict[bytes, bytes]:
    """A hash as Redis answers it: a list in RESP2, a map in RESP3."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def client() -> Any:
    """The synchronous client of the control plane: django-redis' pooled connection."""
    return get_redis_connection("default")
