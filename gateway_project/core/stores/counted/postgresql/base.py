"""Where Django looks for the back-end of an `ENGINE`.

django-prometheus' own takes each loan from the pool for a new connection.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql import base as django_base
from django_prometheus.db import connection_errors_total, connections_total
from django_prometheus.db.backends.postgresql import base

from gateway_project.core.stores.counted.cursors import counting


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]
    @property
    def _has_pool(self) -> bool:
        return bool(self.settings_dict["OPTIONS"].get("pool"))

    def get_connection_params(self) -> dict[str, Any]:
        found = django_base.DatabaseWrapper.get_connection_params(self)
        found["cursor_factory"] = counting(found["cursor_factory"], self.alias, self.vendor)
        return found

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if not self._has_pool:
            return super().get_new_connection(conn_params)
        try:
            return django_base.DatabaseWrapper.get_new_connection(self, conn_params)
        except Exception:
            connection_errors_total.labels(self.alias, self.vendor).inc()
            raise

    def _configure_connection(self, connection: Any) -> Any:
        """Tell a new connection the time zone: that is nobody's query."""
        if self._has_pool:  # which calls this once for each connection that it opens
            connections_total.labels(self.alias, self.vendor).inc()
        counted, connection.cursor_factory = connection.cursor_factory, django_base.Cursor
        try:
            return super()._configure_connection(connection)
        finally:
            connection.cursor_factory = counted
