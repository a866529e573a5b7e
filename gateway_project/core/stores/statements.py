"""How long the database may be asked for one thing, by who asks.

The server ends a statement, a wait for a lock and a transaction in which nothing happens;
`liveness.py` gives up a server that does not even say so. Bounds are sent twice: with
each connection (libpq's `options`), and in each transaction by `SET LOCAL`, because a pooler in
transaction mode, such as pgbouncer, keeps nothing of a session. Commands of `manage.py` have none:
a migration takes as long as it takes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from django.conf import settings


class Bounds(NamedTuple):
    """In seconds. Of one statement, of its waiting for locks, of a pause inside a transaction."""

    statement: float
    lock: float
    idle: float

    def parameters(self) -> dict[str, int]:
        """As the server calls them; in milliseconds."""
        return {
            "statement_timeout": round(self.statement * 1000),
            "lock_timeout": round(self.lock * 1000),
            "idle_in_transaction_session_timeout": round(self.idle * 1000),
        }

    @property
    def options(self) -> str:
        """For libpq, with a new connection."""
        return " ".join(f"-c {name}={value}" for name, value in self.parameters().items())

    @property
    def set_local(self) -> str:
        """The statement that a transaction begins with."""
        return "SELECT " + ", ".join(
            f"set_config('{name}', '{value}', true)" for name, value in self.parameters().items()
        )


def of_requests() -> Bounds:
    """Of pages and management calls; the data plane has tighter ones (`database.BOUNDS`)."""
    seconds = settings.DATABASE_STATEMENT_SECONDS
    return Bounds(seconds, settings.DATABASE_LOCK_SECONDS, seconds)


WORKER = Bounds(statement=60, lock=10, idle=60)
"""Nobody waits for what a worker does."""
of_process: Bounds | None = None
"""Set when a process begins to serve or to work; None: it is a command."""
_own: ContextVar[Bounds | None] = ContextVar("statement_bounds", default=None)


def in_force() -> Bounds | None:
    return _own.get() or of_process


def bind_process(bounds: Bounds) -> None:
    """From now on, for all connections that this process opens and transactions that it begins."""
    global of_process
    of_process = bounds


@contextmanager
def bounded(bounds: Bounds | None) -> Iterator[None]:
    """Other bounds than the process's, for what is done inside."""
    token = _own.set(bounds)
    try:
        yield
    finally:
        _own.reset(token)


class Lane(NamedTuple):
    """A pool of connections beside everybody's: at most `size`, each made with `bounds`."""

    name: str
    size: int
    bounds: Bounds


class _Thread(threading.local):
    lane: Lane | None = None


thread = _Thread()
"""Of which lane the connections of this thread are; None: everybody's pool."""
