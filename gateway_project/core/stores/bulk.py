"""Many rows at once, or few among many, past the ORM (PostgreSQL)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection
from django.db.models import Model


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


def update_each(rows: Sequence[Model], names: Sequence[str]) -> None:
    """Write these fields of each row as it has them, in one statement.

    Django's own `bulk_update` has a `CASE` of all rows for each field, and takes ten times the CPU.
    """
    if not rows:
        return
    model = type(rows[0])
    if connection.vendor != "postgresql":
        model._default_manager.bulk_update(rows, names, batch_size=100)
        return
    fields: list[Any] = [model._meta.pk, *(model._meta.get_field(name) for name in names)]
    columns = [connection.ops.quote_name(field.column) for field in fields]
    arrays = (f"%s::{field.rel_db_type(connection)}[]" for field in fields)
    statement = f"""
UPDATE {connection.ops.quote_name(model._meta.db_table)} AS old
SET {", ".join(f"{column} = new.{column}" for column in columns[1:])}
FROM unnest({", ".join(arrays)}) AS new ({", ".join(columns)})
WHERE old.{columns[0]} = new.{columns[0]}
"""  # noqa: S608
    values = [
        [field.get_db_prep_save(getattr(row, field.attname), connection) for row in rows]
        for field in fields
    ]
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def each_once(column: str, table: str, where: str, then: str, *, after: str = "") -> str:
    """SQL: `then`, behind a CTE `waiting` of the values of `column` in rows `where`, each once.

    In their order, from one to the next by an index that begins with the column: it costs as many
    looks as `then` takes of them (`LIMIT`), however many rows there are. The last one is NULL.
    `after` names the parameter of the value to begin behind. All arguments are SQL of ours.
    """
    begins = f" AND {column} > %({after})s" if after else ""
    return f"""
WITH RECURSIVE waiting ({column}) AS (
    (SELECT {column} FROM {table} WHERE {where}{begins} ORDER BY {column} LIMIT 1)
    UNION ALL
    SELECT (SELECT {column} FROM {table} WHERE {where} AND {column} > waiting.{column}
            ORDER BY {column} LIMIT 1)
    FROM waiting WHERE waiting.{column} IS NOT NULL
){then}
"""  # noqa: S608
