"""In-process caching: a bounded map whose entries expire, and look-ups that share their work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from threading import Lock
from time import monotonic
from typing import Any, Generic, TypeVar

from cachetools import TLRUCache

K = TypeVar("K")
V = TypeVar("V")


class TTLCache(Generic[K, V]):
    """At most `size_max` of entries, each gone after its own seconds; cachetools keeps the bound.

    An entry's size is 1, or what `size_of` says of its value: bytes, where values differ much. A
    value that is larger than all of the cache is not kept.

    Readers look into a plain dict beside it, which mirrors what cachetools holds: its own reading
    moves the entry in an order, so it would need the writers' lock, and costs ten times as much
    and more for each request. So when full, the entries written longest ago make room. Writers
    take a lock, because the control plane's threads share the map with the event loop.
    """

    def __init__(self, size_max: int, size_of: Callable[[V], int] = lambda _: 1) -> None:
        self._entries: dict[K, tuple[float, V]] = {}
        self._bound = _Bound(size_max, size_of, self._entries)
        self._size_max, self._size_of = size_max, size_of
        self._writing = Lock()

    @property
    def size(self) -> int:
        return int(self._bound.currsize)

    def get(self, key: K) -> V | None:
        entry = self._entries.get(key)
        return entry[1] if entry is not None and monotonic() < entry[0] else None

    def put(self, key: K, value: V, *, seconds: float) -> None:
        """Keep it, and drop all that has expired."""
        entry = (monotonic() + seconds, value)
        with self._writing:
            if self._size_of(value) > self._size_max:
                self._drop(key)
                return
            self._bound[key] = entry
            if key in self._bound:
                self._entries[key] = entry
            else:  # it has expired already, and with it what was there
                self._entries.pop(key, None)

    def drop(self, key: K) -> None:
        with self._writing:
            self._drop(key)

    def drop_where(self, condition: Callable[[V], bool]) -> None:
        with self._writing:
            for key in [key for key, (_, value) in self._entries.items() if condition(value)]:
                self._drop(key)

    def clear(self) -> None:
        with self._writing:
            self._bound.clear()
            self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, key: K) -> None:
        self._entries.pop(key, None)
        with suppress(KeyError):  # also of what has expired, which it deletes all the same
            del self._bound[key]


class _Bound(TLRUCache[Any, tuple[float, Any]]):
    """What goes here, by age or for want of room, goes from `entries` as well."""

    def __init__(
        self,
        size_max: int,
        size_of: Callable[[Any], int],
        entries: dict[Any, tuple[float, Any]],
    ) -> None:
        super().__init__(
            size_max,
            ttu=lambda _, entry, now: entry[0],
            timer=lambda: monotonic(),
            getsizeof=lambda entry: size_of(entry[1]),
        )
        self._mirror = entries

    def expire(self, time: float | None = None) -> list[tuple[Any, tuple[float, Any]]]:
        expired = list(super().expire(time))
        for key, _ in expired:
            self._mirror.pop(key, None)
        return expired

    def popitem(self) -> tuple[Any, tuple[float, Any]]:
        item = super().popitem()
        self._mirror.pop(item[0], None)
        return item


class SingleFlight(Generic[K, V]):
    """Equal look-ups at once run once; all callers get the one result or the one exception.

    Callers that looked into a shared cache before say since when: who looked just before the result
    was put there comes just after, and is given it for `grace_seconds`.
    """

    def __init__(self, *, grace_seconds: float = 0.0) -> None:
        self._grace_seconds = grace_seconds
        self._in_flight: dict[K, asyncio.Task[V]] = {}
        self._ended: dict[K, float] = {}

    def start(
        self, key: K, work: Callable[[], Awaitable[V]], *, since: float | None = None
    ) -> tuple[asyncio.Task[V], bool]:
        """The call for `key`, and whether it is a new one. It goes on whoever stops waiting.

        A call that ended after `since` (of the loop's clock) can be joined as well.
        """
        self._forget_old()
        call = self._in_flight.get(key)
        ended = self._ended.get(key)  # None: it has not
        if call is not None and (ended is None or (since is not None and since <= ended)):
            return call, False
        call = self._in_flight[key] = asyncio.get_running_loop().create_task(self._run(key, work))
        self._ended.pop(key, None)
        call.add_done_callback(ignore)
        return call, True

    async def do(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        call, _ = self.start(key, work)
        # Shielded: a caller that goes away must not take the others' answer with it.
        return await asyncio.shield(call)

    async def cancel_all(self) -> None:
        """End what is under way; whoever waits for it is told that it was cancelled."""
        calls = list(self._in_flight.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _run(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        call = asyncio.current_task()
        try:
            result = await work()
        except BaseException:  # cancelled, too: nobody may join what ended without a result
            self._forget(key, call)
            raise
        if self._grace_seconds and self._in_flight.get(key) is call:
            self._ended[key] = asyncio.get_running_loop().time()
        else:
            self._forget(key, call)
        return result

    def _forget_old(self) -> None:
        # The oldest stand first. A timer for each would cost more than the rest of this.
        if not self._ended:
            return
        too_old = asyncio.get_running_loop().time() - self._grace_seconds
        while self._ended:
            key, ended = next(iter(self._ended.items()))
            if ended > too_old:
                return
            del self._ended[key], self._in_flight[key]

    def _forget(self, key: K, call: asyncio.Task[Any] | None) -> None:
        if self._in_flight.get(key) is call:
            del self._in_flight[key]
            self._ended.pop(key, None)


class Loader(Generic[K, V]):
    """Look-ups of single keys that share their trips (the pattern of GraphQL's DataLoader).

    What is asked while a trip is under way leaves together with the next. `load_many` gets at
    most `keys_max` keys and returns what it found; who is missing gets None.
    """

    def __init__(
        self, load_many: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], *, keys_max: int = 100
    ) -> None:
        self._load_many = load_many
        self._keys_max = keys_max
        self._asked: dict[K, asyncio.Future[V | None]] = {}
        self._waiting: list[K] = []
        self._task: asyncio.Task[None] | None = None

    def start(self, key: K) -> asyncio.Future[V | None]:
        """What will be found of `key`. It comes whoever stops waiting: shield it."""
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = asyncio.get_running_loop().create_future()
            future.add_done_callback(ignore)
            self._waiting.append(key)
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        while self._waiting:
            keys = self._waiting[: self._keys_max]
            del self._waiting[: self._keys_max]
            futures = {key: self._asked.pop(key) for key in keys}
            try:
                found = await self._load_many(keys)
            except asyncio.CancelledError:
                for future in futures.values():
                    future.cancel()
                raise
            except Exception as exc:  # noqa: BLE001 - it is the callers', each of them
                for future in futures.values():
                    if not future.done():
                        future.set_exception(exc)
            else:
                for key, future in futures.items():
                    if not future.done():
                        future.set_result(found.get(key))


async def ended(call: asyncio.Future[Any], *, within_seconds: float) -> bool:
    """Whether `call` ended in time; it goes on whoever stops waiting.

    As `asyncio.wait`, at a third of its cost.
    """
    if call.done():
        return True
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()

    def wake(_: Any = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(max(0.0, within_seconds), wake)
    call.add_done_callback(wake)
    try:
        await waiter
    finally:
        timer.cancel()
        call.remove_done_callback(wake)
    return call.done()


def ignore(future: asyncio.Future[Any]) -> None:
    """A done-callback for a result that nobody may wait for: asyncio complains of unseen errors."""
    if not future.cancelled():
        future.exception()
