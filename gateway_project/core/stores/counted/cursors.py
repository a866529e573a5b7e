"""A cursor that counts and times its statements."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from time import perf_counter
from typing import Any

from django_prometheus.db import (
    errors_total,
    execute_many_total,
    execute_total,
    query_duration_seconds,
)


@cache
def counting(cursor_class: type[Any], alias: str, vendor: str) -> type[Any]:
    """The cursors of one database. With django-prometheus' metrics, not with its wrapper.

    That looks its labels up three times for each statement, which costs 40 µs, and makes a class
    for each connection, on SQLite for each cursor.
    """
    executed, executed_many, duration = (
        metric.labels(alias, vendor)
        for metric in (execute_total, execute_many_total, query_duration_seconds)
    )

    class Cursor(cursor_class):  # type: ignore[misc]
        def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
            if query == "":  # the pool's look whether a connection lives: nobody's query
                return super().execute(query, *args, **kwargs)
            executed.inc()
            return _timed(super().execute, query, *args, **kwargs)

        def executemany(self, query: Any, params: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            params = list(params)  # some hand over an iterator
            executed.inc(len(params))
            executed_many.inc(len(params))
            return _timed(super().executemany, query, params, *args, **kwargs)

    def _timed(run: Any, *args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        try:
            return run(*args, **kwargs)
        except Exception as exc:
            errors_total.labels(alias, vendor, type(exc).__name__).inc()
            raise
        finally:
            duration.observe(perf_counter() - began)

    return Cursor
