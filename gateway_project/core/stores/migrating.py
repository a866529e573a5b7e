"""What migrations of big tables are made of: nothing that keeps readers or writers waiting.

A migration that uses `AddIndex` or `RemoveIndex` says `atomic = False`, and holds nothing else.
"""

from __future__ import annotations

from typing import Any

from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations

OFTEN = {
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_vacuum_insert_scale_factor": 0.05,
    "autovacuum_analyze_scale_factor": 0.02,
}
"""Of tables that grow: PostgreSQL would wait until a fifth of them is dead rows."""


class AddIndex(AddIndexConcurrently):
    """`CREATE INDEX CONCURRENTLY` on PostgreSQL, a plain one elsewhere."""

    def database_forwards(self, app_label: str, schema_editor: Any, *states: Any) -> None:
        how = AddIndexConcurrently if _is_postgresql(schema_editor) else migrations.AddIndex
        how.database_forwards(self, app_label, schema_editor, *states)

    def database_backwards(self, app_label: str, schema_editor: Any, *states: Any) -> None:
        how = AddIndexConcurrently if _is_postgresql(schema_editor) else migrations.AddIndex
        how.database_backwards(self, app_label, schema_editor, *states)


class RemoveIndex(RemoveIndexConcurrently):
    """`DROP INDEX CONCURRENTLY` on PostgreSQL, a plain one elsewhere."""

    def database_forwards(self, app_label: str, schema_editor: Any, *states: Any) -> None:
        how = RemoveIndexConcurrently if _is_postgresql(schema_editor) else migrations.RemoveIndex
        how.database_forwards(self, app_label, schema_editor, *states)

    def database_backwards(self, app_label: str, schema_editor: Any, *states: Any) -> None:
        how = RemoveIndexConcurrently if _is_postgresql(schema_editor) else migrations.RemoveIndex
        how.database_backwards(self, app_label, schema_editor, *states)


def vacuum_often(*tables: str) -> migrations.RunPython:
    """Have autovacuum look after tables that grow, and whose rows change or go (PostgreSQL)."""
    changed = ", ".join(f"{name} = {value}" for name, value in OFTEN.items())
    return migrations.RunPython(
        lambda _, editor: _alter(editor, tables, f"SET ({changed})"),
        lambda _, editor: _alter(editor, tables, f"RESET ({', '.join(OFTEN)})"),
    )


def room_for_updates(*tables: str) -> migrations.RunPython:
    """Leave half of each new page free, for tables whose rows are updated again and again.

    A row that stays in its page needs no new entry in any index (PostgreSQL's heap-only tuples).
    """
    return migrations.RunPython(
        lambda _, editor: _alter(editor, tables, "SET (fillfactor = 50)"),
        lambda _, editor: _alter(editor, tables, "RESET (fillfactor)"),
    )


def _alter(schema_editor: Any, tables: tuple[str, ...], what: str) -> None:
    if _is_postgresql(schema_editor):
        for table in tables:
            schema_editor.execute(f"ALTER TABLE {table} {what}")


def on_postgresql(forwards: str, backwards: str) -> migrations.RunPython:
    """SQL for PostgreSQL alone, on tables that are not ours."""

    def run(statement: str) -> Any:
        def run(_: Any, schema_editor: Any) -> None:
            if _is_postgresql(schema_editor):
                schema_editor.execute(statement)

        return run

    return migrations.RunPython(run(forwards), run(backwards))


def _is_postgresql(schema_editor: Any) -> bool:
    return bool(schema_editor.connection.vendor == "postgresql")
