"""Robin's settings, read from its page, without their secrets, and remembered for five minutes.

One request at a time asks Robin. When it does not answer, what was known goes on for an hour.
The page itself is never kept: it holds passwords.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

from gateway_project.core import clock, errors
from gateway_project.core.stores.bus import bus
from gateway_project.core.stores.caching import SingleFlight
from robin.config import translate
from robin.upstream.client import HTML, robin

FRESH_SECONDS = 300.0
STALE_SECONDS = 3600.0
CHANNEL = "robin-config"


@dataclass(frozen=True, slots=True)
class Settings:
    sections: dict[str, Any]
    fetched_at: datetime
    known_since: float  # monotonic()

    @property
    def is_fresh(self) -> bool:
        return monotonic() - self.known_since < FRESH_SECONDS


class _Memory:
    def __init__(self) -> None:
        self.known: Settings | None = None
        self.is_dropped = False
        self.flights: SingleFlight[str, Settings] = SingleFlight()

    def drop(self, word: str = "") -> None:
        """It changed: ask again, but go on with it when Robin does not answer."""
        self.is_dropped = True


_memory = _Memory()
bus.on(CHANNEL, _memory.drop, partial(_memory.drop, ""))


async def read() -> Settings:
    """Raises what `Port` raises, when nothing is known that is younger than an hour."""
    known = _memory.known
    if known is not None and known.is_fresh and not _memory.is_dropped:
        return known
    try:
        return await _memory.flights.do("", _fetch)
    except (errors.UpstreamUnavailable, errors.UpstreamTimedOut, errors.UpstreamUnexpected):
        if known is None or monotonic() - known.known_since > STALE_SECONDS:
            raise
        return known


async def read_by(ask: Callable[[], Awaitable[bytes]]) -> None:
    """The same by a client of one's own, for a worker. Raises what `ask` does, and `ValueError`."""
    known = _memory.known
    if known is None or not known.is_fresh or _memory.is_dropped:
        sections = translate.config_page(await ask())
        _memory.known, _memory.is_dropped = Settings(sections, clock.now(), monotonic()), False


async def _fetch() -> Settings:
    _memory.is_dropped = False
    try:
        sections = await robin().service.get("/config", HTML, translate.config_page)
    except BaseException:  # cancelled, too: what was dropped has not been read
        _memory.is_dropped = True
        raise
    _memory.known = Settings(sections, clock.now(), monotonic())
    return _memory.known


class Reloaded(NamedTuple):
    """What came of it: Robin says that all is well, also where it could not read a file."""

    message: str
    missing: list[str]
    """Sections that were there before, and are not any more."""


async def reload() -> Reloaded:
    """Let Robin read its files again, and look what became of its settings."""
    before = set((await read()).sections) if _memory.known is not None else set[str]()
    if not before:
        with suppress(errors.GatewayError):
            before = set((await _memory.flights.do("", _fetch)).sections)
    answer = await robin().service.post("/config/reload")
    if not isinstance(answer, dict) or answer.get("status") != "OK":
        raise errors.UpstreamUnexpected("Robin could not read its settings again. See its log.")
    await asyncio.to_thread(bus.say, CHANNEL, "reloaded")
    _memory.drop()
    try:
        after = set((await _memory.flights.do("", _fetch)).sections)
    except (errors.UpstreamUnavailable, errors.UpstreamTimedOut, errors.UpstreamUnexpected):
        text = "Robin read its files again, and does not show its settings since. See its log."
        return Reloaded(text, sorted(before))
    missing = sorted(before - after)
    if missing:
        text = f"Robin read its files again, and these are gone: {', '.join(missing)}."
        return Reloaded(f"{text} Is a file of them broken? See its log.", missing)
    return Reloaded("Configuration reloaded", [])


def known_retries_max() -> dict[str, int]:
    """Of the settings that were read last, never asking for them: they serve as a divisor."""
    return translate.retries_max(_memory.known.sections if _memory.known is not None else {})


def known_waits() -> translate.Waits:
    """The same of the time between two tries."""
    return translate.waits(_memory.known.sections if _memory.known is not None else {})


def forget() -> None:
    _memory.known, _memory.is_dropped = None, False
