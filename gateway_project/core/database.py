"""SQL from the data plane: one door, off the event loop.

Django's request signals do not fire there, so a connection taken from the pool would never go
back; `run` closes it in `finally`. The executor is small on purpose: it bounds how many database
connections one worker can hold, and `hops` lets a test count that a hot request uses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from django.db import connections

P = ParamSpec("P")
T = TypeVar("T")

THREADS_MAX = 4
_executor = ThreadPoolExecutor(max_workers=THREADS_MAX, thread_name_prefix="sql")
hops = 0


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a thread that may use the ORM, and give its connection back after."""
    global hops
    hops += 1

    def call() -> T:
        try:
            return function(*args, **kwargs)
        finally:
            connections.close_all()

    return await asyncio.get_running_loop().run_in_executor(_executor, call)
