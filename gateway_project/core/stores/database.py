"""SQL from the data plane: one door, off the event loop.

Django's request signals do not fire there, so a connection taken from the pool would never go
back; a door closes it in `finally`. Its executor is small on purpose: it bounds how many database
connections one worker can hold. `hops` lets a test count that a hot request uses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import ParamSpec, TypeVar

from django import db

from gateway_project.core import errors

P = ParamSpec("P")
T = TypeVar("T")

THREADS_MAX = 4
DEADLINE_SECONDS = 2.0
REST_SECONDS = 1.0

_requests = ThreadPoolExecutor(max_workers=THREADS_MAX, thread_name_prefix="sql")
# A thread of its own: a slow write of the log must not keep an unknown key waiting.
_writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sql-writer")
_backing_off_until = 0.0
hops = 0
trouble_since: float | None = None
"""`monotonic()` of the first failure since the last success; None when all is well."""


async def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a thread that may use the ORM, for a request that waits.

    Raises `StoreUnavailable` when the database is away or takes longer than `DEADLINE_SECONDS`;
    then nobody else waits for it in the next `REST_SECONDS`.
    """
    global hops, trouble_since, _backing_off_until
    hops += 1
    if monotonic() < _backing_off_until:
        raise errors.StoreUnavailable
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            result = await _in_thread(_requests, function, *args, **kwargs)
    except (db.OperationalError, db.InterfaceError, TimeoutError) as exc:
        note_trouble()
        _backing_off_until = monotonic() + REST_SECONDS
        raise errors.StoreUnavailable from exc
    trouble_since = None
    return result


async def run_behind(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for work that no request waits for: one at a time, without a deadline."""
    return await _in_thread(_writer, function, *args, **kwargs)


async def _in_thread(
    executor: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    def call() -> T:
        try:
            return function(*args, **kwargs)
        finally:
            db.connections.close_all()

    return await asyncio.get_running_loop().run_in_executor(executor, call)


def learn_time() -> None:
    """Ask PostgreSQL for the time anew: clocks drift between two connections."""
    if db.connection.vendor == "postgresql":
        from gateway_project.core.stores.counted.postgresql import base

        db.connection.ensure_connection()
        base.learn_time(db.connection.connection)


def note_trouble() -> None:
    """Somebody else found the database away."""
    global trouble_since
    trouble_since = trouble_since or monotonic()


def forget_trouble() -> None:
    """Start anew, as if nothing had failed."""
    global hops, trouble_since, _backing_off_until
    hops, trouble_since, _backing_off_until = 0, None, 0.0
