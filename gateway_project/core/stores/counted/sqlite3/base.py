"""Where Django looks for the back-end of an `ENGINE`."""

from __future__ import annotations

from typing import Any

from django_prometheus.db.backends.sqlite3 import base

from gateway_project.core.stores.counted.cursors import counting


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]
    def create_cursor(self, name: str | None = None) -> Any:
        factory = counting(self.CURSOR_CLASS, self.alias, self.vendor)
        return self.connection.cursor(factory=factory)
