"""Who asks Robin for the queue, and what was found: one leader in the whole installation.

`RedisLeaderLock` has to be acquired anew every second. Its fencing token grows whenever it changes
hands (by Redis' clock, so that it grows also when Redis lost everything). What is found is stored
by a script that looks at both, so that a leader who slept through the end of its term stores
nothing, and its late messages are known by their lower token. Without Redis there is one web
process, which always leads (`LocalLeaderLock`).
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Any, NamedTuple, Protocol

from django.conf import settings

from gateway_project.core.stores.addresses import async_client

TERM_SECONDS = 5.0
KEEP_SECONDS = 3600
MESSAGES_MAX = 120  # differences that a client may have missed and still resume
MESSAGE_BYTES_MAX = 32 << 10
"""A larger difference is not kept: who missed it gets the whole, which is not much more."""
PREFIX = "gw:queue:{live}:"  # one slot of a cluster

ACQUIRE = """
local holder, fence = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return 0 end
fence = fence and tonumber(fence)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if not holder or not fence then
  local t = redis.call('TIME')
  fence = math.max(t[1] * 1000 + math.floor(t[2] / 1000), (fence or 0) + 1)
  redis.call('SET', KEYS[2], string.format('%.0f', fence))
end
return fence
"""
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
STORE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[5])
if ARGV[4] == '' then
  redis.call('DEL', KEYS[4])
else
  redis.call('RPUSH', KEYS[4], ARGV[4])
  redis.call('LTRIM', KEYS[4], -tonumber(ARGV[6]), -1)
  redis.call('EXPIRE', KEYS[4], ARGV[5])
end
return 1
"""


class Found(NamedTuple):
    """The last snapshot, and the differences that led to it, oldest first; all as JSON."""

    snapshot: bytes | None
    messages: list[bytes]


class LeaderLock(Protocol):
    async def acquire(self) -> int:
        """Take or keep the lock: its fencing token, or 0 when somebody else has it."""
        ...

    async def release(self) -> None: ...

    async def store(self, fencing_token: int, snapshot: bytes, message: bytes) -> bool:
        """Keep a snapshot, and the difference that led to it; without one, the past is dropped.

        False when the lock is not ours any more: then nothing was stored.
        """
        ...

    async def found(self) -> Found: ...

    async def close(self) -> None: ...


class RedisLeaderLock:
    """Every call may raise `redis.RedisError` or `OSError`."""

    def __init__(self, url: str, *, term_seconds: float = TERM_SECONDS) -> None:
        self._me = secrets.token_hex(16)
        self._term_ms = int(term_seconds * 1000)
        self._keys = [PREFIX + name for name in ("holder", "fence", "picture", "words")]
        # No retries of its own: the loop that calls comes back in a second anyway.
        self._redis: Any = async_client(url, socket_timeout=2, socket_connect_timeout=1)

    async def acquire(self) -> int:
        return int(await self._redis.eval(ACQUIRE, 2, *self._keys[:2], self._me, self._term_ms))

    async def release(self) -> None:
        await self._redis.eval(RELEASE, 1, self._keys[0], self._me)

    async def store(self, fencing_token: int, snapshot: bytes, message: bytes) -> bool:
        if len(message) > MESSAGE_BYTES_MAX:
            message = b""
        values = (self._me, fencing_token, snapshot, message, KEEP_SECONDS, MESSAGES_MAX)
        return bool(await self._redis.eval(STORE, 4, *self._keys, *values))

    async def found(self) -> Found:
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.get(self._keys[2]).lrange(self._keys[3], 0, -1)
        snapshot, messages = await pipeline.execute()
        return Found(snapshot, messages)

    async def close(self) -> None:
        await self._redis.aclose()


class LocalLeaderLock:
    def __init__(self) -> None:
        self._snapshot: bytes | None = None
        self._messages: deque[bytes] = deque(maxlen=MESSAGES_MAX)

    async def acquire(self) -> int:
        return 1

    async def release(self) -> None:
        """Nobody else waits for it."""

    async def store(self, fencing_token: int, snapshot: bytes, message: bytes) -> bool:
        self._snapshot = snapshot
        if 0 < len(message) <= MESSAGE_BYTES_MAX:
            self._messages.append(message)
        else:
            self._messages.clear()
        return True

    async def found(self) -> Found:
        return Found(self._snapshot, list(self._messages))

    async def close(self) -> None:
        """Nothing is held."""


def make_leader_lock() -> LeaderLock:
    return RedisLeaderLock(settings.REDIS_URL) if settings.REDIS_URL else LocalLeaderLock()
