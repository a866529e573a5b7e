"""Where Django looks for the back-end of an `ENGINE`.

Beside the counting, for which django-prometheus' own takes each loan from the pool for a new
connection: bounds for what is asked, and pools for threads that must not wait for others
(`core/stores/statements.py`).
"""

from __future__ import annotations

from time import monotonic
from typing import Any, ClassVar

import psycopg
from django.db.backends.postgresql import base as django_base
from django_prometheus.db import connection_errors_total, connections_total
from django_prometheus.db.backends.postgresql import base

from gateway_project.core import clock
from gateway_project.core.stores import statements
from gateway_project.core.stores.counted.cursors import counting
from gateway_project.core.stores.liveness import Connection


class _Psycopg:
    """psycopg with our connections, as Django's back-end asks it."""

    connect = Connection.connect

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg, name)


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]
    Database = _Psycopg()
    _lanes: ClassVar[dict[statements.Lane | None, dict[str, Any]]] = {}

    def __init__(self, settings_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        self._lane = statements.thread.lane  # Django makes a wrapper for each thread
        if pool := settings_dict["OPTIONS"].get("pool"):
            pool["connection_class"] = Connection
        super().__init__(settings_dict, *args, **kwargs)

    @property
    def _connection_pools(self) -> dict[str, Any]:
        """Django's, by alias; those of each lane are its own."""
        return self._lanes.setdefault(self._lane, {})

    @property
    def pool(self) -> Any:
        is_new = self.alias not in self._connection_pools
        pool = super().pool
        if is_new and pool is not None and (lane := self._lane):
            # Not by settings of its own: Django changes those that all threads have, for tests.
            pool.resize(min(1, lane.size), lane.size)
        return pool

    def close_pool(self, seconds: float = 5.0) -> None:
        """Of all lanes: whoever asks for it has changed something, or wants the database alone.

        `seconds`: for its threads, which may be connecting, to end.
        """
        for pools in list(self._lanes.values()):
            if pool := pools.pop(self.alias, None):
                pool.close(seconds)

    @property
    def _has_pool(self) -> bool:
        return bool(self.settings_dict["OPTIONS"].get("pool"))

    def get_connection_params(self) -> dict[str, Any]:
        found = django_base.DatabaseWrapper.get_connection_params(self)
        found["cursor_factory"] = counting(found["cursor_factory"], self.alias, self.vendor)
        if bounds := self._lane.bounds if self._lane else statements.in_force():
            found["options"] = f"{bounds.options} {found.get('options', '')}".strip()
        return found

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if not self._has_pool:
            return super().get_new_connection(conn_params)
        try:
            return django_base.DatabaseWrapper.get_new_connection(self, conn_params)
        except Exception:
            connection_errors_total.labels(self.alias, self.vendor).inc()
            raise

    def _set_autocommit(self, autocommit: bool) -> None:
        super()._set_autocommit(autocommit)
        bounds = statements.in_force()
        if autocommit or bounds is None:
            return
        try:
            with self.wrap_database_errors, psycopg.Cursor(self.connection) as cursor:
                cursor.execute(bounds.set_local)  # nobody's query, so by a cursor that counts none
        except Exception:
            self.close()  # Django does not know yet that a transaction was begun
            raise

    def _configure_connection(self, connection: Any) -> Any:
        """Tell a new connection the time zone, and ask it for the time: that is nobody's query."""
        if self._has_pool:  # which calls this once for each connection that it opens
            connections_total.labels(self.alias, self.vendor).inc()
        counted, connection.cursor_factory = connection.cursor_factory, django_base.Cursor
        try:
            must_commit = super()._configure_connection(connection)
            learn_time(connection)
            return must_commit
        finally:
            connection.cursor_factory = counted


def learn_time(connection: Any) -> None:
    """Have the installation's clock go by the server at the other end (psycopg's connection)."""
    asked_at = monotonic()
    with psycopg.Cursor(connection) as cursor:  # nobody's query, whenever it is asked
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        (now,) = cursor.fetchone() or (None,)
    if now is not None:
        clock.learn(now, asked_at)
