"""Whether PostgreSQL still works on what was asked of it.

A server that is gone without a word, or a new one at its address that knows nothing of us, never
answers, and TCP may not notice: a pooler or a proxy in between acknowledges all that we send. A
statement that takes long looks just the same. So whoever has waited for `LOOK_SECONDS` asks over a
connection of its own whether the server has the statement in hand, and waits on if it has.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Generator
from math import inf
from time import monotonic
from typing import Any

import psycopg

from gateway_project.core.stores import statements
from gateway_project.core.stores.silence import of_postgresql

NAME_BYTES_MAX = 63
"""PostgreSQL cuts off what is longer."""
HOSTS_NAMED = (
    "SELECT DISTINCT substring(application_name FROM '^gateway-[0-9a-f]{12} on (.+)$') AS host"
    " FROM pg_stat_activity WHERE datname = current_database()"
)
LOOK_SECONDS = 2.0
CHECK_SECONDS = 1.0
"""The same of what only asks whether a connection that lay idle still works."""
DOUBT_SECONDS = 0.3
AGAIN_SECONDS = 0.1
"""For an answer that was on its way when the server had no more of the statement."""
RETRY_SECONDS = 1.0
RECENT_SECONDS = 5.0
CHECKS = ("", "SELECT 1")  # psycopg's pool's, and Django's
ANSWER_SECONDS = 2
# A pooler hands the name on to the server, where a process id would be its own.
IS_AT_WORK = (
    "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle' "
    "AND pid <> pg_backend_pid()"
)


class _Impatient(psycopg.Connection[Any]):
    """Tries a server that was silent just now for a second only: the next try may find it back."""

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> Any:
        is_recent = of_postgresql.seconds_ago < RECENT_SECONDS
        give_up_at = monotonic() + (RETRY_SECONDS if is_recent else inf)
        gen = super()._connect_gen(conninfo)
        try:
            step = next(gen)
            while True:
                ready = yield step
                if not ready and monotonic() > give_up_at:
                    raise psycopg.errors.ConnectionTimeout("the server says nothing")
                step = gen.send(ready)
        except StopIteration as end:
            return end.value

    @classmethod
    def connect(cls, conninfo: str = "", **parameters: Any) -> Any:
        try:
            return super().connect(conninfo, **parameters)
        except psycopg.errors.ConnectionTimeout:
            # Each five seconds one has its whole time: a server may be slow, and not silent.
            if of_postgresql.seconds_ago >= RECENT_SECONDS:
                of_postgresql.note()
            raise


class _Probe(_Impatient):
    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, ANSWER_SECONDS)


class Connection(_Impatient):
    """Raises `OperationalError`, and is closed, when its server has forgotten it."""

    _made_by: tuple[str, dict[str, Any]] = "", {}
    _spoke_at = inf
    _is_check = False

    @classmethod
    def connect(cls, conninfo: str = "", **parameters: Any) -> Any:
        # Of a process that serves or works with its host, by which the doctor finds the hosts.
        at = f" on {socket.gethostname()}" if statements.of_process else ""
        name = f"gateway-{secrets.token_hex(6)}{at}"
        parameters["application_name"] = name[:NAME_BYTES_MAX]
        made = super().connect(conninfo, **parameters)
        made._made_by, made._spoke_at = (conninfo, parameters), monotonic()
        return made

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        self._is_check = query in CHECKS
        try:
            return super().execute(query, *args, **kwargs)
        finally:
            self._is_check = False

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(self._watched(gen), interval, timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                self.close()  # a late answer would be taken for that to another statement
            raise

    def _watched(self, gen: Any) -> Generator[Any, Any, Any]:
        """psycopg's steps of an exchange, with a look at the server between two that wait."""
        began = monotonic()
        look_at = began + self._patience()
        is_doubted = False
        try:
            step = next(gen)
            while True:
                ready = yield step
                if not ready and monotonic() > look_at:
                    if is_at_work := self._is_at_work():
                        is_doubted, look_at = False, monotonic() + LOOK_SECONDS
                    elif is_at_work is None and monotonic() < began + LOOK_SECONDS:
                        look_at = began + LOOK_SECONDS  # it is there, perhaps, and full
                    elif is_doubted:
                        if is_at_work is not None:
                            of_postgresql.note()
                        raise psycopg.OperationalError("the server does not know of the statement")
                    else:  # its answer may be on the way
                        again = AGAIN_SECONDS if self._is_older else DOUBT_SECONDS
                        is_doubted, look_at = True, monotonic() + again
                step = gen.send(ready)
        except StopIteration as end:
            self._spoke_at = monotonic()
            return end.value

    @property
    def _is_older(self) -> bool:
        """Not heard of since a silence: one that was forgotten is seldom alone."""
        return self._spoke_at < of_postgresql.found_at

    def _patience(self) -> float:
        if self._is_older:
            return DOUBT_SECONDS
        return CHECK_SECONDS if self._is_check else LOOK_SECONDS

    def _is_at_work(self) -> bool | None:
        """None: the server could not be asked."""
        conninfo, parameters = self._made_by
        name = parameters["application_name"]
        plain = {**parameters, "application_name": "gateway-probe", "autocommit": True}
        plain.pop("cursor_factory", None)
        plain["connect_timeout"] = ANSWER_SECONDS
        try:
            with _Probe.connect(conninfo, **plain) as probe:
                return probe.execute(IS_AT_WORK, [name]).fetchone() is not None
        except psycopg.OperationalError:
            return None
