"""Many rows at once, past the ORM (PostgreSQL)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection


def copy_in(table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """`COPY` the rows into the table. Raises what Django's own statements raise."""
    statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
    # Django does not wrap `copy`: without this, psycopg's own errors would get past everybody.
    with (
        connection.wrap_database_errors,
        connection.cursor() as cursor,
        cursor.copy(statement) as copy,
    ):
        for row in rows:
            copy.write_row(row)
