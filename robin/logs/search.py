"""Searching Robin's log: one search at a time, and what came is shared for two seconds.

Robin gives every line that matches at once, tens of megabytes on a busy day, and does nothing else
meanwhile. So equal searches share an answer, and it is read into entries off the event loop.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from urllib.parse import quote
from zoneinfo import ZoneInfo

from django.conf import settings

from gateway_project.core import clock
from gateway_project.core.stores.caching import SingleFlight, TTLCache
from gateway_project.core.telemetry.metrics import cache_bytes
from robin.logs import parsing
from robin.logs.parsing import Entry, Filter
from robin.upstream.client import TEXT, robin

SHARED_SECONDS = 2.0
ENTRIES_PER_CHAR = 4
"""So much more than its text an answer takes once it is read into entries."""


class _Answer(NamedTuple):
    entries: list[Entry]
    bytes: int


# Bounded in bytes: one search may find tens of megabytes.
_found: TTLCache[str, _Answer] = TTLCache(
    settings.ROBIN_LOG_CACHE_BYTES_MAX, size_of=lambda answer: answer.bytes
)
_flights: SingleFlight[str, list[Entry]] = SingleFlight()


async def search(which: Filter) -> list[Entry]:
    """The entries that match, newest first. Raises what `Port` raises."""
    found: list[Entry] = []
    queries = which.queries()
    for query in queries:
        known = _found.get(query)
        if known is not None:
            found += known.entries
        else:
            found += await _flights.do(query, lambda query=query: _ask(query))  # type: ignore[misc]
    if len(queries) > 1:
        found.sort(key=lambda entry: entry.at, reverse=True)
    return await asyncio.to_thread(which.keep, found)


async def _ask(query: str) -> list[Entry]:
    content = await robin().client.get(
        f"/logs?query={quote(query, safe='')}",
        TEXT,
        bytes,
        timeout_seconds=settings.ROBIN_LOGS_TIMEOUT_SECONDS,
    )
    entries = await asyncio.to_thread(_read, content)
    answer = _Answer(entries, ENTRIES_PER_CHAR * len(content))
    _found.put(query, answer, seconds=SHARED_SECONDS)
    cache_bytes.labels("robin_log").set(_found.size)
    return entries


def _read(content: bytes) -> list[Entry]:
    text = content.decode("utf-8", errors="replace")
    return parsing.entries(text, now=clock.now(), zone=ZoneInfo(settings.ROBIN_LOG_TIMEZONE))


def forget() -> None:
    _found.clear()
