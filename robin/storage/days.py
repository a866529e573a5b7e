"""The days of folders and mails of which Robin tells none. Robin UI shows a day of each, or 1970.

A folder has the newest day of a mail that was listed in it, or below it, and until one was, when
this gateway saw it first; a mail without a day in its name has what its folder has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

from django.core.cache import cache
from redis.exceptions import RedisError

from gateway_project.core import clock

KEEP_SECONDS = 180 * 86_400


async def fill(listing: dict[str, Any], parts: Sequence[str]) -> None:
    """`modified` of all its items that have none."""
    await asyncio.to_thread(_fill, listing["items"], parts)


def _fill(items: Sequence[dict[str, Any]], parts: Sequence[str]) -> None:
    folders = [item["path"] for item in items if item["type"] == "directory"]
    above = ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))]
    keys = {path: _key(path) for path in (*folders, *above)}
    try:
        kept: dict[str, int] = cache.get_many(keys.values())
    except (RedisError, OSError):
        kept = {}  # then all are seen for the first time
    # Less than 0: when it was seen first, which any day of a mail replaces.
    first = -int(clock.time() * 1000)
    known = {path: kept.get(key, first) for path, key in keys.items()}
    newest = max([item["modified"] for item in items] + [known[path] for path in folders] + [first])
    if newest > 0:
        known |= {path: max(known[path], newest) for path in above}
    here = known[above[-1]] if above else first
    for item in items:
        item["modifiedKnown"] = item["modified"] > 0 or known.get(item["path"], here) > 0
        item["modified"] = item["modified"] or abs(known.get(item["path"], here))
    news = {keys[path]: day for path, day in known.items() if kept.get(keys[path]) != day}
    if news:
        with suppress(RedisError, OSError):  # the next listing tells as much
            cache.set_many(news, KEEP_SECONDS)


def _key(path: str) -> str:
    return f"robin:day:{sha256(path.encode(errors='surrogatepass')).hexdigest()}"
