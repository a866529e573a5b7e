"""What a long-lived process does not keep: garbage in cycles, and memory that was freed."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from itertools import count
from random import uniform

COLLECT_SECONDS = 60.0
ALL_EVERY = 5
OLDEST = 2  # generation
# glibc's; other C libraries have none.
malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def tune_gc() -> None:
    """Let cycle collections leave out what stays for ever: modules, models, URL patterns.

    With Python's defaults each walks them again: pauses of 50 ms and more, which were most of the
    99th percentile. How rarely they come, `gateway_project` says for every process.
    """
    gc.collect()
    gc.freeze()


async def collect_at_rest() -> None:
    """Fetch each minute what lies in cycles: at rest it would take hours to be enough to come for.

    Of the young only, a few milliseconds under load. Of all but what is frozen every fifth time:
    by itself that would come twice an hour under load, 4 MB later. Never in all processes at once,
    though they began together.
    """
    for number in count(1):
        await asyncio.sleep(COLLECT_SECONDS * uniform(0.5, 1.0))
        gc.collect(OLDEST if number % ALL_EVERY == 0 else OLDEST - 1)
        give_back()


def give_back() -> None:
    """Let the system have what was freed; takes about a millisecond.

    Each page is made in a thread of its own, and malloc's arenas of those keep a little more with
    every page, while what is in use stays as it is.
    """
    if malloc_trim is not None:
        malloc_trim(0)
