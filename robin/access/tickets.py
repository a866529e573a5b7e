"""One-time tickets for `/ws/queue`: a browser cannot send headers there, and a token in an address
ends in somebody's log. A ticket stands for a session, ends when it says, and is gone once it was
shown. Kept under a digest."""

from __future__ import annotations

import secrets
from uuid import UUID

from django.core.cache import cache
from redis.exceptions import RedisError

from gateway_project.core import errors
from robin.access.tokens import digest

SECONDS = 30


def issue(session_id: UUID, valid_until: float) -> str:
    """A ticket whose socket may stay open until then (Unix seconds)."""
    ticket = secrets.token_urlsafe(32)
    cache.set(_key(ticket), (str(session_id), valid_until), timeout=SECONDS)
    return ticket


def redeem(ticket: str) -> tuple[UUID, float]:
    """Session and end (Unix seconds). Of two who show it, one wins.

    Raises `InvalidToken` or `StoreUnavailable`.
    """
    try:
        found = cache.get(_key(ticket))
        if found is None or not cache.delete(_key(ticket)):
            raise errors.InvalidToken
    except (RedisError, OSError) as exc:
        raise errors.StoreUnavailable from exc
    session_id, valid_until = found
    return UUID(session_id), float(valid_until)


def _key(ticket: str) -> str:
    return f"ws-ticket:{digest(ticket)}"
