"""A PostgreSQL of this process that fails at the write that a test names.

Cheaper than a proxy, and exact: `test_waiting.py` has real processes with stores that fail
behind one, at whatever moment they were in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from gateway_project.core.stores import database
from gateway_project.core.stores.liveness import CHECKS

WRITE = re.compile(r"\bINSERT INTO\b|\bDELETE FROM\b|\bUPDATE \S+ SET\b", re.IGNORECASE)
CANCEL = "DO $$ BEGIN RAISE EXCEPTION 'too slow' USING ERRCODE = '57014'; END $$"
"""What the server does with a statement that takes too long, and with its transaction."""


class FailingStore:
    """`slow_after(2)`: the third write takes too long. `away_at_commit()`: nothing comes back from
    the first commit on, of reads neither.

    `has_failed`: whether it came to that; `failed_at`: at which write; `passed`: how many went well
    before.
    """

    def __init__(self, monkeypatch: Any) -> None:
        self._left: int | None = None
        self._waits_for_commit = self.has_failed = False
        self.failed_at, self.passed = "", 0
        execute, executemany = psycopg.Cursor.execute, psycopg.Cursor.executemany
        commit = psycopg.Connection.commit

        def _execute(cursor: Any, query: Any, *args: Any, **more: Any) -> Any:
            if self._is_cancelled(query):
                return execute(cursor, CANCEL)
            return execute(cursor, query, *args, **more)

        def _executemany(cursor: Any, query: Any, *args: Any, **more: Any) -> Any:
            if self._is_cancelled(query):
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
        self._begin()
        self._left = writes
        try:
            yield
        finally:
            self._left = None
            database.forget_trouble()

    @contextmanager
    def away_at_commit(self) -> Iterator[None]:
        self._begin()
        self._waits_for_commit = True
        try:
            yield
        finally:
            self._waits_for_commit = False
            database.forget_trouble()

    def _begin(self) -> None:
        self.has_failed, self.failed_at, self.passed = False, "", 0

    def _is_cancelled(self, query: Any) -> bool:
        """Raises what a lost connection does."""
        if self._waits_for_commit and self.has_failed and query not in CHECKS:
            raise psycopg.OperationalError("the connection is lost")
        text = query if isinstance(query, str) else str(query)
        if self.has_failed or WRITE.search(text) is None:
            return False
        if self._left == 0:
            self.has_failed, self.failed_at = True, text[:60]
            return True
        if self._left is not None:
            self._left -= 1
        self.passed += 1
        return False
