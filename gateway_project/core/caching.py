"""In-process caching: a bounded map whose entries expire, and one flight for equal look-ups."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class TTLCache(Generic[K, V]):
    """A dict of at most `entries_max` entries, each gone after its own seconds.

    When full, the entries written longest ago make room. Reads and writes are single dict
    operations, safe between the event loop and threads under the interpreter lock.
    """

    def __init__(self, entries_max: int) -> None:
        self.entries_max = entries_max
        self._entries: dict[K, tuple[float, V]] = {}

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] < monotonic():
            self._entries.pop(key, None)
            return None
        return entry[1]

    def put(self, key: K, value: V, *, seconds: float) -> None:
        self._entries.pop(key, None)
        while len(self._entries) >= self.entries_max:
            oldest = next(iter(self._entries), None)
            if oldest is None:
                break
            self._entries.pop(oldest, None)
        self._entries[key] = (monotonic() + seconds, value)

    def drop_where(self, condition: Callable[[V], bool]) -> None:
        for key, (_, value) in list(self._entries.items()):
            if condition(value):
                self._entries.pop(key, None)

    def clear(self) -> None:
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


class SingleFlight(Generic[K, V]):
    """Equal look-ups at once run once; all callers get the one result or the one exception."""

    def __init__(self) -> None:
        self._flights: dict[K, asyncio.Task[V]] = {}

    async def do(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        flight = self._flights.get(key)
        if flight is None:

            async def fly() -> V:
                try:
                    return await work()
                finally:
                    self._flights.pop(key, None)

            flight = self._flights[key] = asyncio.ensure_future(fly())
        # Shielded: a caller that goes away must not take the others' answer with it.
        return await asyncio.shield(flight)
