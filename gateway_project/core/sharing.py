"""What tenants of one process share, so that none uses it up: amounts, and places in a queue."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Hashable
from contextlib import asynccontextmanager
from uuid import UUID
from weakref import WeakKeyDictionary, WeakValueDictionary

FIRST = UUID(int=0)
"""No UUIDv7 is smaller."""


class SharedBudget:
    """An amount, of bytes or of places, that nobody can use up for the others.

    Each holder may take as long as it then has no more than is left for all: one alone gets half,
    two a third each, ten an eleventh, and whoever comes next finds as much. (Dynamic thresholds,
    Choudhury and Hahne 1998, as switches share their buffers.) For one thread.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0
        self._held: dict[Hashable, int] = {}

    def room(self, holder: Hashable) -> int:
        """How much `holder` may take now."""
        return max(0, (self.most - self.used - self._held.get(holder, 0)) // 2)

    def held(self, holder: Hashable) -> int:
        return self._held.get(holder, 0)

    def note(self, holder: Hashable, amount: int) -> None:
        """It has taken that already, whatever there is room for."""
        self.used += amount
        self._held[holder] = self._held.get(holder, 0) + amount

    def take(self, holder: Hashable, amount: int) -> bool:
        """False, and nothing is taken, when that is more than there is room for."""
        if amount > self.room(holder):
            return False
        self.note(holder, amount)
        return True

    def give_back(self, holder: Hashable, amount: int) -> None:
        left = self._held.get(holder, 0) - amount
        self.used -= amount
        if left > 0:
            self._held[holder] = left
        else:
            self._held.pop(holder, None)

    def copy(self) -> SharedBudget:
        found = SharedBudget(self.most)
        for holder, amount in self._held.items():
            found.note(holder, amount)
        return found

    def clear(self) -> None:
        self.used = 0
        self._held.clear()


class Semaphores:
    """A semaphore of `places` for each holder, for as long as somebody uses it.

    Each event loop has its own: of another's it could not be waited for.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._known: WeakValueDictionary[tuple[int, str], asyncio.Semaphore] = WeakValueDictionary()

    def of(self, holder: str) -> asyncio.Semaphore:
        key = id(asyncio.get_running_loop()), holder
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = asyncio.Semaphore(self._places)
        return found


class Turn:
    """Where a look at ids in their order, only so many at once, has come to.

    The next goes on there; after the last it begins again. Of one process; threads may share it.
    """

    def __init__(self) -> None:
        self.after = FIRST

    def go_on(self, seen: Collection[UUID], at_once: int) -> None:
        """`seen` were looked at now, as many as there are or `at_once`."""
        self.after = max(seen) if len(seen) >= at_once else FIRST


class FairSemaphore:
    """As `asyncio.Semaphore`, but those who wait are let in by holder, in turn.

    A holder with a thousand waiting is as far from its next place as one with a single call. For
    one event loop.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    def locked(self) -> bool:
        return self._free == 0

    async def acquire(self, holder: Hashable = None) -> None:
        if self._free:
            self._free -= 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()  # it was let in at the very moment it went away
            raise

    @asynccontextmanager
    async def place(self, holder: Hashable = None) -> AsyncIterator[None]:
        await self.acquire(holder)
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        while self._waiting:
            holder, places = self._waiting.popitem(last=False)
            place = places.popleft()
            if places:
                self._waiting[holder] = places  # behind all others
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class LoopTurns:
    """Work that comes in heaps begins piece by piece: a few at each turn of the event loop.

    A hundred tasks that are made at once also run at once, and whatever else comes in waits for all
    of them. Behind this, others come in between, and holders with a heap go on by turns.
    """

    def __init__(self, pieces: int) -> None:
        self._pieces = pieces
        self._places: WeakKeyDictionary[asyncio.AbstractEventLoop, FairSemaphore] = (
            WeakKeyDictionary()
        )

    async def wait(self, holder: Hashable) -> None:
        """Until the next piece of `holder` may begin."""
        loop = asyncio.get_running_loop()
        places = self._places.get(loop)
        if places is None:
            places = self._places[loop] = FairSemaphore(self._pieces)
        await places.acquire(holder)
        loop.call_soon(places.release)  # in the next turn
