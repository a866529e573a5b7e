"""The usage log in daily partitions, where the database has them (PostgreSQL)."""

from datetime import timedelta

from django.db import migrations
from gateway_project.core import clock

TABLE = "accounts_usagelog"
INDEXES = {
    "usage_workspace_time": "workspace_id, created_at",
    "usage_key_time": "api_key_id, created_at",
    "usage_time": "created_at",
}


def _index(cursor):
    for name, columns in INDEXES.items():
        cursor.execute(f"DROP INDEX IF EXISTS {name}")
        cursor.execute(f"CREATE INDEX {name} ON {TABLE} ({columns})")


def _move(cursor, new, extra=""):
    """Put `new` in the place of the table, with its rows and its sequence of ids."""
    cursor.execute(f"ALTER TABLE {TABLE} RENAME TO {TABLE}_before")
    cursor.execute(f"ALTER TABLE {TABLE}_before ALTER COLUMN id DROP IDENTITY IF EXISTS")
    cursor.execute(f"ALTER TABLE {TABLE}_before ALTER COLUMN id DROP DEFAULT")
    cursor.execute(f"CREATE SEQUENCE IF NOT EXISTS {TABLE}_id_seq")
    cursor.execute(f"SELECT setval('{TABLE}_id_seq', coalesce(max(id), 0) + 1) FROM {TABLE}_before")
    cursor.execute(
        f"CREATE TABLE {TABLE} (LIKE {TABLE}_before INCLUDING DEFAULTS, PRIMARY KEY ({new})) {extra}"
    )
    cursor.execute(f"ALTER TABLE {TABLE} ALTER COLUMN id SET DEFAULT nextval('{TABLE}_id_seq')")
    cursor.execute(f"ALTER SEQUENCE {TABLE}_id_seq OWNED BY {TABLE}.id")


def _copy_and_drop(cursor):
    cursor.execute(f"INSERT INTO {TABLE} SELECT * FROM {TABLE}_before")
    cursor.execute(f"DROP TABLE {TABLE}_before")
    _index(cursor)


def partition(apps, schema_editor):
    if schema_editor.connection.vendor != "postgresql":
        return
    with schema_editor.connection.cursor() as cursor:
        _move(cursor, "id, created_at", "PARTITION BY RANGE (created_at)")
        cursor.execute(f"SELECT DISTINCT (created_at AT TIME ZONE 'UTC')::date FROM {TABLE}_before")
        today = clock.now().date()
        days = {row[0] for row in cursor.fetchall()} | {
            today + timedelta(days=n) for n in range(8)
        }
        for day in sorted(days):
            cursor.execute(
                f"CREATE TABLE {TABLE}_p{day:%Y%m%d} PARTITION OF {TABLE} FOR VALUES "
                f"FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
            )
        _copy_and_drop(cursor)


def unpartition(apps, schema_editor):
    if schema_editor.connection.vendor != "postgresql":
        return
    with schema_editor.connection.cursor() as cursor:
        _move(cursor, "id")
        _copy_and_drop(cursor)


class Migration(migrations.Migration):
    dependencies = [("accounts", "0004_usage_rollups")]
    operations = [migrations.RunPython(partition, unpartition)]
