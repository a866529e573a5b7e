"""Whose turn it is at Robin's queue, and how long Robin rests then, in the whole installation.

A list of the queue costs Robin half a millisecond for each item that it holds, whatever was asked
for, and no mail leaves meanwhile. So one of us asks at a time, and then nobody for as long as makes
what we take a small share of Robin's time (`ROBIN_QUEUE_SHARE_MAX`).

Robin goes on with a list that nobody waits for any more. Whoever gives one up leaves the turn
`abandoned`; the next has to see first that Robin answers other things again, and then settles for
as long as that took. Without Redis there is one web process, and its threads share `LocalTurns`.
"""

from __future__ import annotations

import secrets
from threading import Lock
from time import monotonic
from typing import Any, Literal, NamedTuple, Protocol

from django.conf import settings

from gateway_project.core.stores.addresses import async_client

AT_ONCE = 1e9
"""To owe Robin, in seconds: whatever there is."""
TERM_SECONDS = 10.0
"""Of a holder who falls silent; renewed by `keep`."""
EXPIRE_SECONDS = 3600
PREFIX = "gw:queue:{live}:turn:"  # one slot of a cluster
State = Literal["mine", "taken", "abandoned", "resting"]
STATES: tuple[State, ...] = ("mine", "taken", "abandoned", "resting")

BEGIN = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local since = tonumber(redis.call('GET', KEYS[2]) or '')
if redis.call('GET', KEYS[1]) then return {1, since and now - since or 0} end
if since then return {2, now - since} end
local rest = tonumber(redis.call('GET', KEYS[3]) or '0')
if rest > now + tonumber(ARGV[3]) then return {3, rest - now} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], string.format('%.0f', now), 'EX', ARGV[4])
return {0, 0}
"""
END = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[1] == '' and redis.call('GET', KEYS[1]) then return 0 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local rest = math.max(now, tonumber(redis.call('GET', KEYS[3]) or '0')) + tonumber(ARGV[2])
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('SET', KEYS[3], string.format('%.0f', rest), 'EX', ARGV[3])
return 1
"""
KEEP = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
return 0
"""
TAKEN = """
local since = tonumber(redis.call('GET', KEYS[1]) or '')
if not since then return false end
local t = redis.call('TIME')
return math.max(0, t[1] * 1000 + math.floor(t[2] / 1000) - since)
"""
LEAVE = (
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
)


class Turn(NamedTuple):
    """`seconds`: since it was taken or abandoned; until Robin has rested."""

    state: State
    seconds: float


class Turns(Protocol):
    """Every call may raise `redis.RedisError` or `OSError`."""

    async def begin(self, *, owing_seconds: float = 0.0) -> Turn:
        """Take the turn if it is free, and Robin has rested, or will have in so many seconds: what
        is owed to it is added up."""
        ...

    async def taken_seconds(self) -> float | None:
        """For how long somebody has had it, or had when it was abandoned; None: it is free."""
        ...

    async def keep(self) -> None:
        """Go on holding it; more often than each `TERM_SECONDS`."""
        ...

    async def end(self, took_seconds: float) -> None: ...

    async def leave(self) -> None:
        """Robin may still be at it: `abandoned` from now on."""
        ...

    async def settle(self, took_seconds: float) -> None:
        """Nobody holds it, and Robin is done with what was abandoned."""
        ...

    async def close(self) -> None: ...


def rest_seconds(took_seconds: float) -> float:
    """How long nobody asks after something that took Robin so long."""
    return took_seconds * (1 / settings.ROBIN_QUEUE_SHARE_MAX - 1)


class RedisTurns:
    def __init__(self, url: str) -> None:
        self._me = secrets.token_hex(16)
        self._keys = [PREFIX + name for name in ("holder", "since", "rest")]
        self._redis: Any = async_client(url, socket_timeout=2, socket_connect_timeout=1)

    async def begin(self, *, owing_seconds: float = 0.0) -> Turn:
        term_ms, owing_ms = int(TERM_SECONDS * 1000), int(owing_seconds * 1000)
        values = (self._me, term_ms, owing_ms, EXPIRE_SECONDS)
        state, ms = await self._redis.eval(BEGIN, 3, *self._keys, *values)
        return Turn(STATES[state], ms / 1000)

    async def taken_seconds(self) -> float | None:
        ms = await self._redis.eval(TAKEN, 1, self._keys[1])
        return None if ms is None else ms / 1000

    async def keep(self) -> None:
        await self._redis.eval(KEEP, 1, self._keys[0], self._me, int(TERM_SECONDS * 1000))

    async def end(self, took_seconds: float) -> None:
        await self._end(self._me, took_seconds)

    async def settle(self, took_seconds: float) -> None:
        await self._end("", took_seconds)

    async def _end(self, holder: str, took_seconds: float) -> None:
        rest_ms = int(rest_seconds(took_seconds) * 1000)
        expire = max(EXPIRE_SECONDS, 2 * rest_ms // 1000)
        await self._redis.eval(END, 3, *self._keys, holder, rest_ms, expire)

    async def leave(self) -> None:
        await self._redis.eval(LEAVE, 1, self._keys[0], self._me)

    async def close(self) -> None:
        await self._redis.aclose()


class _Local:
    """What the threads of the only process share."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.holder: object | None = None
        self.since: float | None = None
        self.rested_at = 0.0


class LocalTurns:
    def __init__(self, shared: _Local | None = None) -> None:
        self._shared = shared or _local

    async def begin(self, *, owing_seconds: float = 0.0) -> Turn:
        s, now = self._shared, monotonic()
        with s.lock:
            if s.holder is not None:
                return Turn("taken", now - (s.since or now))
            if s.since is not None:
                return Turn("abandoned", now - s.since)
            if s.rested_at > now + owing_seconds:
                return Turn("resting", s.rested_at - now)
            s.holder, s.since = self, now
            return Turn("mine", 0.0)

    async def taken_seconds(self) -> float | None:
        with self._shared.lock:
            since = self._shared.since
        return None if since is None else monotonic() - since

    async def keep(self) -> None:
        """Nobody falls silent: they end together."""

    async def end(self, took_seconds: float) -> None:
        self._end(self, took_seconds)

    async def settle(self, took_seconds: float) -> None:
        self._end(None, took_seconds)

    def _end(self, holder: object | None, took_seconds: float) -> None:
        s = self._shared
        with s.lock:
            if s.holder is holder:
                s.holder = s.since = None
                s.rested_at = max(monotonic(), s.rested_at) + rest_seconds(took_seconds)

    async def leave(self) -> None:
        with self._shared.lock:
            if self._shared.holder is self:
                self._shared.holder = None

    async def close(self) -> None:
        """Nothing is held."""


_local = _Local()


def make_turns() -> Turns:
    return RedisTurns(settings.REDIS_URL) if settings.REDIS_URL else LocalTurns()


def forget() -> None:
    _local.__init__()  # type: ignore[misc]
