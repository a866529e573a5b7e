"""What was judged of a call to a model already, so that it is neither judged nor charged again.

LiteLLM sends a streamed answer anew with every few words, and a message before and during the call
if it is configured so, each time under the same `litellm_call_id`. What is kept of it is no text:
keyed digests of what was judged from its beginning, for ten minutes. When it is lost, the rest of
the call costs once more.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

import orjson
from django.conf import settings
from django.core.cache import cache
from redis.exceptions import ResponseError

from detection.guardrails.pieces import Piece
from gateway_project.core.stores import redis
from gateway_project.core.stores.caching import ignore

KEPT_SECONDS = 600
CHECKS_PER_MINUTE_UNIT = 100
TEXTS_MAX = 256
GROWING_MAX = 32
"""Texts of an answer: each may be the beginning of the next, so each is compared."""


class Known(NamedTuple):
    """The first `chars` of a text were judged; `blocked`: and why they were refused."""

    chars: int
    digest: str
    blocked: str | None = None


class Call:
    """One side, request or answer, of a call, as one key under one policy sees it."""

    def __init__(self, key_id: UUID, policy: str, side: str, call_id: str) -> None:
        pepper = settings.KEY_PEPPERS.by_version[0][1][:64]
        self._hash = blake2b(key=pepper, digest_size=16, person=b"call")
        self._hash.update(f"{key_id}\0{policy}\0{side}\0{call_id}\0".encode(errors="replace"))
        self._key = "gw:call:" + self._hash.hexdigest()
        self._is_growing = side == "response"
        self._known: list[Known] = []
        self.checks = 0

    async def recall(self) -> None:
        """One trip to Redis; without Redis nothing is known."""
        value: bytes | None
        if settings.REDIS_URL:
            try:
                value = await redis.cache_connection().submit(redis.pack("GET", self._key))
            except (redis.RedisUnavailable, ResponseError):
                return
        else:
            value = cache.get(self._key)
        if value is not None:
            self.checks, known = orjson.loads(value)
            self._known = [Known(*one) for one in known]

    def known_of(self, piece: Piece) -> Known:
        """The longest beginning of the text that was judged."""
        whole = len(piece.text)
        best = Known(0, "")
        for one in self._known:
            is_candidate = one.chars == whole or (self._is_growing and one.chars < whole)
            if is_candidate and one.chars > best.chars and self._digest(piece, one.chars) == one[1]:
                best = one
        return best

    def note(self, piece: Piece, *, blocked: str | None = None) -> None:
        """All of it was judged."""
        chars = len(piece.text)
        known = Known(chars, self._digest(piece, chars), blocked)
        self._known = [known, *(one for one in self._known if one[:2] != known[:2])]

    def keep(self) -> None:
        """Nobody waits for it."""
        most = GROWING_MAX if self._is_growing else TEXTS_MAX
        known = [list(one) for one in self._known[:most]]
        value = orjson.dumps([self.checks + 1, known])
        if settings.REDIS_URL:
            command = redis.pack("SET", self._key, value, "EX", KEPT_SECONDS)
            redis.cache_connection().submit(command).add_done_callback(ignore)
        else:
            cache.set(self._key, value, KEPT_SECONDS)

    def minute_cost(self, known: Iterable[Known]) -> int:
        """1 for what has a new text in it, and for each hundredth check that has none."""
        has_new = any(not one.chars for one in known)
        return int(has_new or self.checks % CHECKS_PER_MINUTE_UNIT == 0)

    def _digest(self, piece: Piece, chars: int) -> str:
        found = self._hash.copy()
        found.update(f"{piece.kind}\0{piece.where}\0".encode())
        found.update(piece.text[:chars].encode(errors="replace"))
        return found.hexdigest()
