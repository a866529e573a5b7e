"""Scores remembered by their exact text: never verdicts, so that any threshold can be applied.

An entry is found by a keyed digest of workspace, text, content type and engine (address, version,
window): nobody can guess a text from Redis, no other text or form of it can leave a score here, a
new engine starts afresh, and no customer learns, by `cached` or by the time it takes, that another
asked the same. Fresh for `SCORE_CACHE_SECONDS`; kept for `STALE_SECONDS` for the time
when the engine is in trouble. Only what an engine said is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, NamedTuple
from uuid import UUID

import orjson
from django.conf import settings
from django.core.cache import cache
from redis.exceptions import ResponseError

from gateway_project.core import clock
from gateway_project.core.stores import redis
from gateway_project.core.stores.caching import ignore
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import bound_reached

STALE_SECONDS = 3600
AHEAD_SECONDS_MAX = 60
"""A score from further in the future than clocks differ is not believed."""
BYTES_MAX = 4 << 10
"""Of an entry: an engine that gives reasons of any length must not fill Redis."""
log = get_logger("gateway.scores")


Reason = Literal["connect_error", "timeout", "engine_error", "circuit_open"]
"""Why an engine gave no score: one of four stable words."""


class Spent(NamedTuple):
    """What calls cost, whatever their answers were worth."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    @classmethod
    def of(cls, several: Iterable[Spent]) -> Spent:
        return cls(*map(sum, zip(*several, strict=True)))


NOTHING = Spent()


@dataclass(frozen=True, slots=True)
class Score:
    """`score` is 0..1 for "malicious"; `endpoint` is who answered, in the engine's own words.

    `scanned_chars` of `total_chars` were looked at, and `unseen` says why not all, or what
    else the engine could not judge. `queued_seconds` is how long the calls waited for a place.
    `engine` is whose score it is, by its name in the settings; `path` is where in a JSON text the
    highest score stood. `second_missing`: an engine should have been asked as well, and why it
    was not.
    """

    score: float
    threat_types: tuple[str, ...]
    reason: str | None
    endpoint: str | None
    scanned_chars: int
    total_chars: int
    queued_seconds: float = 0.0
    engine: str = "default"
    path: str | None = None
    unseen: tuple[str, ...] = ()
    spent: Spent = NOTHING
    second_missing: Reason | None = None


class Remembered(NamedTuple):
    score: Score
    age_seconds: int

    @property
    def is_fresh(self) -> bool:
        return self.age_seconds < settings.SCORE_CACHE_SECONDS


def key_of(text: str, content_type: str, engine_id: str, workspace_id: UUID) -> str:
    """`engine_id` names the engine, its version and how it is asked."""
    pepper = settings.KEY_PEPPERS.by_version[0][1]
    material = f"score 2\0{workspace_id}\0{engine_id}\0{content_type}\0{text}"
    # Keyed BLAKE2 (RFC 7693) is a MAC in one pass, at a fifth of the cost of OpenSSL's HMAC.
    digest = blake2b(material.encode(), key=pepper[:64], digest_size=32, person=b"score")
    return "gw:score:" + digest.hexdigest()


class LookUp:
    """A look-up under way. With Redis it leaves with the batch in hand, beside the limiter's; with
    a Redis of its own, at the same moment.

    `at` is when it began, of the loop's clock.
    """

    __slots__ = ("_asked", "_value", "at")

    def __init__(self, key: str) -> None:
        self.at = asyncio.get_running_loop().time()
        self._asked: asyncio.Future[Any] | None = None
        self._value: bytes | None = None
        if settings.REDIS_URL:
            self._asked = redis.cache_connection().submit(redis.pack("GET", key))
            self._asked.add_done_callback(ignore)  # a refused request never reads it
        else:
            self._value = cache.get(key)

    async def found(self) -> Remembered | None:
        if self._asked is None:
            return _read(self._value)
        try:
            return _read(await self._asked)
        except (redis.RedisUnavailable, ResponseError):
            return None


def keep(key: str, score: Score) -> None:
    """Remember what the engine said; nobody waits for it."""
    row = [
        score.score,
        score.threat_types,
        score.reason,
        score.endpoint,
        score.scanned_chars,
        score.total_chars,
        int(clock.time()),
        score.engine,
        score.path,
        score.unseen,
    ]
    value = orjson.dumps(row)
    if len(value) > BYTES_MAX:
        bound_reached.labels("score").inc()
    elif settings.REDIS_URL:
        command = redis.pack("SET", key, value, "EX", STALE_SECONDS)
        stored = redis.cache_connection().submit(command, can_wait=True)
        stored.add_done_callback(ignore)
    else:
        cache.set(key, value, STALE_SECONDS)


def _read(value: bytes | None) -> Remembered | None:
    if value is None:
        return None
    try:
        score, kinds, reason, endpoint, scanned, total, at, *more = orjson.loads(value)
        engine, path, unseen = more or ("default", None, ())
        age = int(clock.time()) - at
        if not 0 <= score <= 1:
            raise ValueError("not a score")
        scored = Score(
            score,
            tuple(kinds),
            reason,
            endpoint,
            scanned,
            total,
            engine=engine,
            path=path,
            unseen=tuple(unseen),
        )
    except (orjson.JSONDecodeError, ValueError, TypeError) as exc:
        log.warning("score_unreadable", error=type(exc).__name__)
        return None
    if not -AHEAD_SECONDS_MAX <= age <= STALE_SECONDS:
        return None
    return Remembered(scored, max(0, age))
