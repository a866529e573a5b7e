"""When a store last left a connection without an answer, or without its other end.

All processes that were forked from one know it together. What one of them has found out the others
need not find out again: each of their connections that is older would cost a time-out of its own.
"""

from __future__ import annotations

from mmap import PAGESIZE, mmap
from time import monotonic

# Without a file, so the page is shared with whoever is forked; the clock is the host's.
_shared = memoryview(mmap(-1, PAGESIZE)).cast("d")


class Silence:
    """Of one kind of store: `place` is its own."""

    def __init__(self, place: int) -> None:
        self._place = place
        self.forget()

    @property
    def found_at(self) -> float:
        """By `monotonic`, or 0."""
        return _shared[self._place]

    @property
    def seconds_ago(self) -> float:
        return monotonic() - self.found_at

    def note(self) -> None:
        _shared[self._place] = monotonic()

    def forget(self) -> None:
        _shared[self._place] = 0.0


of_postgresql = Silence(0)
of_redis = Silence(1)
