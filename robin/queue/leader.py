"""Who asks Robin for the queue, and what was found: one seat for the whole installation.

`RedisSeat` is a lock that must be held anew every second, with a fencing number that grows whenever
it changes hands (by Redis' clock, so that it grows also when Redis lost everything). What is found
is stored by a script that looks at both, so that a holder who slept through the end of its term
stores nothing, and its late words are known by their lower number. Without Redis there is one web
process, which always sits (`LocalSeat`).
"""

from __future__ import annotations

import secrets
from collections import deque
from typing import Any, NamedTuple, Protocol

from django.conf import settings
from redis.asyncio import Redis

TERM_SECONDS = 5.0
KEEP_SECONDS = 3600
WORDS_MAX = 120  # differences that a client may have missed and still resume
PREFIX = "gw:queue:{live}:"  # one slot of a cluster

HOLD = """
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
RESIGN = """
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
    """The last picture, and the differences that led to it, oldest first; all as JSON."""

    picture: bytes | None
    words: list[bytes]


class Seat(Protocol):
    async def hold(self) -> int:
        """Take or keep the seat: its fencing number, or 0 when somebody else sits there."""
        ...

    async def resign(self) -> None: ...

    async def store(self, fence: int, picture: bytes, word: bytes) -> bool:
        """Keep a picture, and the difference that led to it; without one, the past is dropped.

        False when the seat is not ours any more: then nothing was stored.
        """
        ...

    async def found(self) -> Found: ...

    async def close(self) -> None: ...


class RedisSeat:
    """Every call may raise `redis.RedisError` or `OSError`."""

    def __init__(self, url: str, *, term_seconds: float = TERM_SECONDS) -> None:
        self._me = secrets.token_hex(16)
        self._term_ms = int(term_seconds * 1000)
        self._keys = [PREFIX + name for name in ("holder", "fence", "picture", "words")]
        # No retries of its own: the loop that calls comes back in a second anyway.
        self._redis: Any = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=1)

    async def hold(self) -> int:
        return int(await self._redis.eval(HOLD, 2, *self._keys[:2], self._me, self._term_ms))

    async def resign(self) -> None:
        await self._redis.eval(RESIGN, 1, self._keys[0], self._me)

    async def store(self, fence: int, picture: bytes, word: bytes) -> bool:
        values = (self._me, fence, picture, word, KEEP_SECONDS, WORDS_MAX)
        return bool(await self._redis.eval(STORE, 4, *self._keys, *values))

    async def found(self) -> Found:
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.get(self._keys[2]).lrange(self._keys[3], 0, -1)
        picture, words = await pipeline.execute()
        return Found(picture, words)

    async def close(self) -> None:
        await self._redis.aclose()


class LocalSeat:
    def __init__(self) -> None:
        self._picture: bytes | None = None
        self._words: deque[bytes] = deque(maxlen=WORDS_MAX)

    async def hold(self) -> int:
        return 1

    async def resign(self) -> None:
        """Nobody else waits for it."""

    async def store(self, fence: int, picture: bytes, word: bytes) -> bool:
        self._picture = picture
        if word:
            self._words.append(word)
        else:
            self._words.clear()
        return True

    async def found(self) -> Found:
        return Found(self._picture, list(self._words))

    async def close(self) -> None:
        """Nothing is held."""


def make_seat() -> Seat:
    return RedisSeat(settings.REDIS_URL) if settings.REDIS_URL else LocalSeat()
