"""What is in a backup, readable beside it, and whether a restored database has all of that."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import sql
from pydantic import BaseModel

from gateway_project.backups import BackupError

VERSION = 1
TABLES = """
SELECT c.relname, c.relkind, pg_get_expr(c.relpartbound, c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') ORDER BY c.relname
"""
OBJECTS = """
SELECT 'index', indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT 'constraint', conrelid::regclass || '.' || conname,
    pg_get_constraintdef(oid) || CASE WHEN convalidated THEN '' ELSE ' NOT VALID' END
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT 'trigger', tgrelid::regclass || '.' || tgname, pg_get_triggerdef(oid)
    FROM pg_trigger WHERE NOT tgisinternal
"""
SEQUENCES = """
SELECT 'sequence ' || sequencename, coalesce(last_value, 0)::text
FROM pg_sequences WHERE schemaname = 'public'
"""
CAST = re.compile(r"::(?:character varying|[a-z_]+)(?:\(\d+\))?(?:\[\])?")
PUNCTUATION = re.compile(r"[() ]")
# One text for a row, whatever the client's settings.
PLAIN = "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL extra_float_digits = 1"


class Table(BaseModel):
    """`bound`: of a partition, which rows it takes. A partitioned table has no rows of its own."""

    rows: int = 0
    digest: str = ""
    is_partitioned: bool = False
    bound: str | None = None


class Manifest(BaseModel):
    """`keys`: fingerprints of the secrets that its contents need, by setting and name."""

    version: int = VERSION
    gateway: str
    made_at: str
    postgresql: int
    dump: str
    bytes: int = 0
    sha256: str = ""
    migrations: list[str]
    tables: dict[str, Table]
    objects: dict[str, str]
    keys: dict[str, str]

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables.values())


def read(content: bytes) -> Manifest:
    try:
        found = Manifest.model_validate_json(content)
    except ValueError:
        raise BackupError("The manifest cannot be read: is it one of a backup?") from None
    if found.version > VERSION:
        raise BackupError(
            f"The manifest is of version {found.version}, made by gateway {found.gateway}: "
            "restore with that one."
        )
    return found


def describe(connection: psycopg.Connection[Any], **facts: Any) -> Manifest:
    """All that the connection's snapshot holds. Reads every row once."""
    with connection.cursor() as cursor:
        cursor.execute(PLAIN)
        cursor.execute(TABLES)
        tables = {
            name: Table(is_partitioned=kind == "p", bound=bound)
            for name, kind, bound in cursor.fetchall()
        }
        for name, table in tables.items():
            if not table.is_partitioned:
                table.rows, table.digest = _digest(cursor, name)
        cursor.execute(OBJECTS)
        objects = {f"{kind} {name}": _plain(text) for kind, name, text in cursor.fetchall()}
        objects |= sequences(connection)
        cursor.execute("SELECT app || '.' || name FROM django_migrations ORDER BY 1")
        migrations = [name for (name,) in cursor.fetchall()]
        cursor.execute(
            "SELECT setting || ' ' || name, fingerprint FROM accounts_secretinuse ORDER BY 1"
        )
        keys = dict(cursor.fetchall())
    return Manifest(migrations=migrations, tables=tables, objects=objects, keys=keys, **facts)


def sequences(connection: psycopg.Connection[Any]) -> dict[str, str]:
    """How far each is now: sequences are in no snapshot."""
    return dict(connection.execute(SEQUENCES).fetchall())


def _plain(definition: str) -> str:
    """Without what a server writes anew of its own words: casts, brackets, spaces."""
    return PUNCTUATION.sub("", CAST.sub("", definition))


def _digest(cursor: Any, table: str) -> tuple[int, str]:
    """Rows, and a sum over each row's hash, which no order changes."""
    cursor.execute(
        sql.SQL(
            "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) "
            "FROM ONLY {} t"
        ).format(sql.Identifier(table))
    )
    rows, total = cursor.fetchone()
    return int(rows), f"{int(total) % (1 << 64):016x}"


def _went_on(name: str, before: str, after: str) -> bool:
    """A sequence that was used between the snapshot and its own turn in the dump."""
    is_sequence = name.startswith("sequence ") and "none" not in (before, after)
    return is_sequence and int(after) > int(before)


def differences(expected: Manifest, found: Manifest) -> list[str]:
    """In sentences; none: the restored database is what was backed up."""
    sentences = []
    for name in sorted(expected.tables.keys() | found.tables.keys()):
        a, b = expected.tables.get(name), found.tables.get(name)
        if a is None or b is None:
            sentences.append(f"table {name} is {'missing' if b is None else 'not of the backup'}")
        elif a.rows != b.rows:
            sentences.append(f"table {name} has {b.rows:,} rows, {a.rows:,} were backed up")
        elif a.digest != b.digest:
            sentences.append(f"table {name} has other rows than were backed up")
        elif a.bound != b.bound:
            sentences.append(f"partition {name} is {b.bound or 'none'}, it was {a.bound}")
    for name in sorted(expected.objects.keys() | found.objects.keys()):
        before, after = expected.objects.get(name, "none"), found.objects.get(name, "none")
        if before != after and not _went_on(name, before, after):
            sentences.append(f"{name} is {after}, it was {before}")
    if expected.migrations != found.migrations:
        sentences.append("the list of migrations differs")
    if expected.keys != found.keys:
        sentences.append("the secrets in use differ")
    return sentences
