"""Stores of this process that fail at the write, or the command, that a test names.

Cheaper than a proxy, and exact: `test_waiting.py` has real processes with stores that fail
behind one, at whatever moment they were in.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
import redis.asyncio.client
import redis.client
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway_project.core.context import RequestContext, current
from gateway_project.core.stores import database
from gateway_project.core.stores.caching import ignore
from gateway_project.core.stores.liveness import CHECKS
from gateway_project.core.stores.redis import PipelinedConnection, RedisUnavailable
from gateway_project.tests.kept import BEHIND

WRITE = re.compile(r"\b(?:INSERT INTO|DELETE FROM|UPDATE(?= \S+ SET\b)) \"?(\w+)", re.IGNORECASE)
"""With the name of the table."""
CANCEL = "DO $$ BEGIN RAISE EXCEPTION 'too slow' USING ERRCODE = '57014'; END $$"
"""What the server does with a statement that takes too long, and with its transaction."""


class FailingStore:
    """`slow_after(2)`: the third write takes too long. `away_at_commit()`: nothing comes back from
    the first commit on, of reads neither.

    `has_failed`: whether it came to that; `failed_at`: at which write; `passed`: how many went well
    before; `by_itself`: whether one of them was in no transaction. `tables`: into which all were.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self._left: int | None = None
        self._waits_for_commit = self.has_failed = False
        self.failed_at, self.passed, self.by_itself = "", 0, False
        self.tables: set[str] = set()
        execute, executemany = psycopg.Cursor.execute, psycopg.Cursor.executemany
        commit = psycopg.Connection.commit

        def _execute(cursor: Any, query: Any, *args: Any, **more: Any) -> Any:
            if self._is_cancelled(cursor, query):
                return execute(cursor, CANCEL)
            return execute(cursor, query, *args, **more)

        def _executemany(cursor: Any, query: Any, *args: Any, **more: Any) -> Any:
            if self._is_cancelled(cursor, query):
                return execute(cursor, CANCEL)
            return executemany(cursor, query, *args, **more)

        def _commit(connection: Any) -> None:
            if self._waits_for_commit and self.passed:
                self.has_failed, self.failed_at = True, "COMMIT"
                raise psycopg.OperationalError("the connection is lost")
            commit(connection)

        monkeypatch.setattr(psycopg.Cursor, "execute", _execute)
        monkeypatch.setattr(psycopg.Cursor, "executemany", _executemany)
        monkeypatch.setattr(psycopg.Connection, "commit", _commit)

    @contextmanager
    def slow_after(self, writes: int) -> Iterator[None]:
        self.begin()
        self._left = writes
        try:
            yield
        finally:
            self._left = None
            database.forget_trouble()

    @contextmanager
    def away_at_commit(self) -> Iterator[None]:
        self.begin()
        self._waits_for_commit = True
        try:
            yield
        finally:
            self._waits_for_commit = False
            database.forget_trouble()

    def begin(self) -> None:
        self.has_failed = self.by_itself = False
        self.failed_at, self.passed, self.tables = "", 0, set()

    def _is_cancelled(self, cursor: Any, query: Any) -> bool:
        """Raises what a lost connection does."""
        if self._waits_for_commit and self.has_failed and query not in CHECKS:
            raise psycopg.OperationalError("the connection is lost")
        text = query if isinstance(query, str) else str(query)
        found = WRITE.search(text)
        if found is None or found[1] in BEHIND:
            return False
        self.tables.add(found[1])
        if self.has_failed:
            return False
        if self._left == 0:
            self.has_failed, self.failed_at = True, text[:60]
            return True
        if self._left is not None:
            self._left -= 1
        self.passed += 1
        self.by_itself |= cursor.connection.autocommit
        return False


Manner = Literal["refusing", "silent"]


class FailingRedis:
    """`away_after(2, "silent")`: two commands of what is asked within are answered, and no other.

    The third is not done when Redis refuses, and done when it falls silent: only its answer is
    missing. What goes on behind the requests is not asked there. `sent`: how many there were.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self._left: int | None = None
        self._manner: Manner = "refusing"
        self.sent = 0
        client, asynchronous = redis.client, redis.asyncio.client
        for kind, name in ((client.Redis, "execute_command"), (client.Pipeline, "execute")):
            monkeypatch.setattr(kind, name, self._blocking(getattr(kind, name)))
        for kind, name in (
            (asynchronous.Redis, "execute_command"),
            (asynchronous.Pipeline, "execute"),
        ):
            monkeypatch.setattr(kind, name, self._awaited(getattr(kind, name)))
        monkeypatch.setattr(
            PipelinedConnection, "submit", self._submitted(PipelinedConnection.submit)
        )

    @contextmanager
    def well(self) -> Iterator[None]:
        """Counts, and fails at nothing."""
        self.sent = 0
        token = current.set(RequestContext("127.0.0.1", None, None))
        try:
            yield
        finally:
            current.reset(token)

    @contextmanager
    def away_after(self, commands: int, manner: Manner) -> Iterator[None]:
        self._left, self._manner = commands, manner
        try:
            with self.well():
                yield
        finally:
            self._left = None

    def _next(self) -> Literal["well", "refused", "lost"]:
        """What becomes of a command."""
        # What a transaction does when it is committed is done in the thread of its statements.
        if current.get() is None and not threading.current_thread().name.startswith("sql-"):
            return "well"
        self.sent += 1
        if self._left is None:
            return "well"
        self._left -= 1
        if self._left >= 0:
            return "well"
        return "lost" if self._manner == "silent" and self._left == -1 else "refused"

    def _error(self) -> Exception:
        silent = self._manner == "silent"
        return RedisTimeoutError("no answer") if silent else RedisConnectionError("refused")

    def _blocking(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        def _execute(*args: Any, **more: Any) -> Any:
            fate = self._next()
            if fate == "refused":
                raise self._error()
            answer = execute(*args, **more)
            if fate == "lost":
                raise self._error()
            return answer

        return _execute

    def _awaited(self, execute: Callable[..., Any]) -> Callable[..., Any]:
        async def _execute(*args: Any, **more: Any) -> Any:
            fate = self._next()
            if fate == "refused":
                raise self._error()
            answer = await execute(*args, **more)
            if fate == "lost":
                raise self._error()
            return answer

        return _execute

    def _submitted(self, submit: Callable[..., Any]) -> Callable[..., Any]:
        def _submit(*args: Any, **more: Any) -> asyncio.Future[Any]:
            fate = self._next()
            if fate == "well":
                found: asyncio.Future[Any] = submit(*args, **more)
                return found
            if fate == "lost":
                submit(*args, **more).add_done_callback(ignore)
            failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            failed.set_exception(RedisUnavailable("away"))
            return failed

        return _submit
