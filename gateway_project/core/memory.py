"""The garbage collector of a long-lived process."""

from __future__ import annotations

import asyncio
import gc
from random import uniform

COLLECT_SECONDS = 60.0


def tune_gc() -> None:
    """Let cycle collections leave out what stays for ever: modules, models, URL patterns.

    With Python's defaults each walks them again: pauses of 50 ms and more, which were most of the
    99th percentile. How rarely they come, `gateway_project` says for every process.
    """
    gc.collect()
    gc.freeze()


async def collect_at_rest() -> None:
    """Fetch each minute what lies in cycles: at rest it would take hours to be enough to come for.

    Of the young only, a few milliseconds under load; the rest comes by itself. Never in all
    processes at once, though they began together.
    """
    while True:
        await asyncio.sleep(COLLECT_SECONDS * uniform(0.5, 1.0))
        gc.collect(1)
