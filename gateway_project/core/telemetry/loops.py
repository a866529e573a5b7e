"""Loops that work behind the requests, and for how many rounds each has failed in a row.

Nobody waits for a loop, so nobody notices when it fails: a worker's task that beat sends again
each second is green in every process list. Each round says how it ended; after `ROUNDS_MAX` that
failed in a row, whatever process ran them, `/health` is `degraded` and names the loop, and an
`alert` is logged. The counts lie in the cache (Redis, where there is one). A process that is well
asks it once and then no more, until a round of its own fails; so what a process that is gone left
there ends with the first round of the one that takes its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import uniform
from typing import Any, ClassVar

from django.core.cache import cache

from gateway_project.core.telemetry.logging import get_logger

ROUNDS_MAX = 5
FORGET_SECONDS = 300
"""After its last failed round, a loop that nobody runs any more is forgotten: a round takes
seconds, or a minute while what it asks is slow."""
FAILED_SECONDS = 1.0
"""After a round that failed, however soon the next would come: `ROUNDS_MAX` are no blink."""
log = get_logger("gateway.loops")


class Loop:
    """One loop, by its name. Its calls ask the cache, and never raise; `a…` are for event loops."""

    known: ClassVar[dict[str, Loop]] = {}

    def __init__(self, name: str, forget_seconds: float = FORGET_SECONDS) -> None:
        self.name = name
        self._key = f"loop:{name}"
        self._forget_seconds = forget_seconds
        self._has_failed = True  # so far as this process knows
        self.known[name] = self

    @classmethod
    def of(cls, name: str) -> Loop:
        return cls.known.get(name) or cls(name)

    def failed(self, error: BaseException) -> None:
        """A round failed."""
        self._has_failed = True
        try:
            cache.add(self._key, 0, self._forget_seconds)
            rounds = cache.incr(self._key)
            cache.touch(self._key, self._forget_seconds)
        except Exception as exc:  # noqa: BLE001 - the store is away, which is its own alert
            log.warning("loop_uncounted", loop=self.name, error=type(exc).__name__)
            return
        if rounds == ROUNDS_MAX:
            log.error(
                "loop_failing",
                loop=self.name,
                rounds=rounds,
                error=type(error).__name__,
                alert=True,
            )

    def succeeded(self) -> None:
        """A round did what it should: what failed before is over."""
        try:
            cache.delete(self._key)
        except Exception as exc:  # noqa: BLE001 - as above
            log.warning("loop_uncounted", loop=self.name, error=type(exc).__name__)
        else:
            self._has_failed = False

    async def afailed(self, error: BaseException) -> None:
        await asyncio.to_thread(self.failed, error)

    async def asucceeded(self) -> None:
        """Asks nobody where the last round of this process succeeded, too: for each round's end."""
        if self._has_failed:
            await asyncio.to_thread(self.succeeded)

    async def every(
        self,
        seconds: float,
        work: Callable[[], Coroutine[Any, Any, None]],
        *,
        logged: tuple[type[Exception], ...] = (),
    ) -> None:
        """Do `work` again and again, `seconds` after each end; a round that fails is only counted.

        `logged`: kinds of errors of which `work` has logged what is to be logged.
        Runs until it is cancelled, which leaves a round under way to its end. Processes that begin
        together do not go on in step.
        """
        wait = seconds * uniform(0.5, 1.0)
        while True:
            await asyncio.sleep(wait)
            wait = seconds
            try:
                await asyncio.shield(work())
            except Exception as exc:
                if not isinstance(exc, logged):
                    kind = type(exc).__name__
                    log.error("round_failed", loop=self.name, error=kind, exc_info=exc)
                await self.afailed(exc)
                wait = max(seconds, FAILED_SECONDS)
            else:
                await self.asucceeded()


def failed_rounds() -> dict[str, int]:
    """How many rounds in a row each loop failed that did, at least one; asks the cache."""
    names = {loop._key: name for name, loop in Loop.known.items()}
    found = cache.get_many(names)
    return {names[key]: rounds for key, rounds in found.items() if rounds}


def failing() -> list[str]:
    """Names of the loops that failed `ROUNDS_MAX` rounds in a row, in order."""
    return sorted(name for name, rounds in failed_rounds().items() if rounds >= ROUNDS_MAX)
