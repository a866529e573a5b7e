"""The installation's time, its ids, and times as the gateway writes them.

Hosts' clocks differ, and jump. What one process writes and another compares (leases, ends of keys
and tokens, ages) is therefore in PostgreSQL's time: each new connection asks for it and `learn`s
it, and `monotonic()` carries it on. An answer that was long on its way says little of the time, and
is left out while a better one is known. Nothing of ours reads the host's clock beside this (a test
looks for it). On SQLite there is one host, and the time is that host's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from time import monotonic
from time import time as host_time
from uuid import UUID

from uuid_utils.compat import uuid7

NEAR_SECONDS = 1.0
"""A host that is no further off makes ids by its own clock, which is quicker."""

DRIFT = 0.001
"""Seconds by which the clocks of two hosts may part in a second; ten times what NTP lets happen."""

_began: float | None = None  # the installation's time when `monotonic()` was 0; None: not known
_unsure_seconds = 0.0  # by how much that may be wrong, at `_learned_at`
_learned_at = 0.0
_host_behind_ms = 0


def time() -> float:
    """Unix seconds."""
    return host_time() if _began is None else _began + monotonic()


def now() -> datetime:
    return datetime.fromtimestamp(time(), UTC)


def learn(answer: float, asked_at: float) -> None:
    """The store's `answer` (Unix seconds) to a question that left at `asked_at` (`monotonic()`).

    It was given at some moment between the two, so half of the way is how far it may be off. Where
    it contradicts what is known, the store's clock was set, and it is right.
    """
    global _began, _unsure_seconds, _learned_at, _host_behind_ms
    answered_at = monotonic()
    unsure = (answered_at - asked_at) / 2
    began = answer - (asked_at + answered_at) / 2
    if _began is not None:
        grown = _unsure_seconds + DRIFT * (answered_at - _learned_at)
        if grown < unsure and abs(began - _began) <= grown + unsure:
            began, unsure, answered_at = _began, _unsure_seconds, _learned_at
    _began, _unsure_seconds, _learned_at = began, unsure, answered_at
    behind = time() - host_time()  # the host's clock may have been set meanwhile
    _host_behind_ms = round(behind * 1000) if abs(behind) > NEAR_SECONDS else 0


def forget() -> None:
    """Go by the host's clock again."""
    global _began, _host_behind_ms
    _began, _host_behind_ms = None, 0


def new_id() -> UUID:
    """A UUIDv7 (RFC 9562): sorts by the installation's time, so that indexes grow at their end."""
    made = uuid7()
    return UUID(int=made.int + (_host_behind_ms << 80)) if _host_behind_ms else made


def utc_text(at: datetime) -> str:
    """`2026-05-01T12:00:00.000Z`: how every answer and event of ours says a time."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
