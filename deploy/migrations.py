"""Migrations that would keep others waiting, or break the release that runs beside them.

`python -m deploy.migrations` looks at the operations of every migration, without a database, and
ends with 1 when one may lock, rewrite, or take away what old processes use (docs/migrations.md has
what to do instead). Tables that a migration makes itself are exempt, and an app's first migration.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from gateway_project.core.stores import migrating

BEFORE = "made before the first release: no installation had rows"
DEFAULT = "SET DEFAULT changes the catalogue alone"
KNOWN: dict[str, str] = {
    "accounts.0002_plans": "it writes the plans, of which there are three",
    "accounts.0003_limit_subject": BEFORE,
    "accounts.0004_usage_rollups": BEFORE,
    "accounts.0005_partition_usage_log": BEFORE,
    "accounts.0006_webhooks": BEFORE,
    "accounts.0007_email_addresses": BEFORE,
    "accounts.0008_apikey_is_session": BEFORE,
    "accounts.0009_staff_indexes": BEFORE,
    "accounts.0010_workspace_is_robin_operator": BEFORE,
    "accounts.0011_deliver_to": BEFORE,
    "accounts.0014_deleted_at": "it drops a constraint, which reads no row",
    "accounts.0015_indexes_of_backlogs": "it drops an index",
    "accounts.0017_columns_default_in_the_database": DEFAULT,
    "accounts.0019_limits_of_workspaces": "it fills a plan or two, of which there are few",
    "accounts.0024_people": "it alters words of choices, which no database has, and a new table",
    "accounts.0025_audit_chain": "it fills two plans, and makes a trigger, which reads no row",
    "accounts.0031_log_exports": "it makes new tables, and sets how one of them is vacuumed",
    "accounts.0039_names_of_workspaces": "its SQL builds an index beside the traffic",
    "detection.0003_policy_versions_and_running_jobs": BEFORE,
    "detection.0007_turns_of_chunks": "it fills chunks that wait, of which there are few",
    "detection.0011_budgets_and_defaults": "it drops a NOT NULL, which reads no row",
    "portal.0002_staff": "it writes the roles of staff, of which there are few",
    "robin.0014_actions_outlive_accounts": "it drops a NOT NULL, which reads no row",
    "webhooks.0002_inbox": BEFORE,
    "webhooks.0003_per_request": BEFORE,
    "webhooks.0007_columns_default_in_the_database": DEFAULT,
}
"""Migrations in which a rule is broken on purpose, and why that harms nobody."""
SETTERS = (migrating.vacuum_often, migrating.room_for_updates)
"""They make `RunPython` that sets how a table is kept, which locks nobody out."""
HARMLESS = {
    *("CreateModel", "AlterModelOptions", "AlterModelManagers", "AlterModelTableComment"),
    *("AlterConstraint", "RemoveConstraint", "AddConstraintNotValid", "ValidateConstraint"),
    *("RenameIndex", "AddIndexConcurrently", "RemoveIndexConcurrently"),
}
"""Operations that only change the catalogue, or wait for nobody."""


def our_apps() -> set[str]:
    """Those of the checkout itself, not of its libraries."""
    from django.apps import apps
    from django.conf import settings

    every = apps.get_app_configs()
    return {app.label for app in every if Path(app.path).parent == settings.BASE_DIR}


def findings() -> Iterator[tuple[str, str]]:
    """Names of migrations, and what is wrong with each."""
    from django.db.migrations.loader import MigrationLoader

    ours = our_apps()
    found = MigrationLoader(None, ignore_no_migrations=True).disk_migrations
    for (app, name), migration in sorted(found.items()):
        if app in ours and not migration.initial and not name.startswith("0001_"):
            for sentence in examine(migration):
                yield f"{app}.{name}", sentence


def examine(migration: object) -> Iterator[str]:
    """What may be wrong with one migration, in sentences."""
    from django.db import migrations as dj
    from django.db.migrations.operations.base import Operation

    operations: list[Operation] = list(migration.operations)  # type: ignore[attr-defined]
    new = {op.name_lower for op in operations if isinstance(op, dj.CreateModel)}
    schema = data = False
    for op in _flat(operations):
        if isinstance(op, dj.RunPython | dj.RunSQL):
            data = True
            if isinstance(op, dj.RunSQL) or not _is_of(op.code, SETTERS):
                yield f"{type(op).__name__}: what it locks and how many rows it writes is not seen."
            continue
        schema = schema or not isinstance(op, dj.CreateModel)
        name = type(op).__name__
        model = str(getattr(op, "model_name", "") or getattr(op, "name", "")).lower()
        if model in new:
            continue
        where = f"{name} of {model}.{getattr(op, 'name', '')}"
        if isinstance(op, dj.RemoveField | dj.DeleteModel):
            yield f"{where}: old processes use it until the release after the next."
        elif isinstance(op, dj.RenameField | dj.RenameModel | dj.AlterModelTable):
            yield f"{where}: old processes know the old name. Add a new one, and move over."
        elif isinstance(op, dj.AddIndex) and "Concurrently" not in _bases(op):
            yield f"{where}: writers wait until it is built. Use core/stores/migrating.py."
        elif isinstance(op, dj.RemoveIndex) and "Concurrently" not in _bases(op):
            yield f"{where}: everybody waits, for it and before it. Use core/stores/migrating.py."
        elif isinstance(op, dj.AlterUniqueTogether | dj.AlterIndexTogether):
            yield f"{where}: writers wait until its index is built. Add a unique index apart."
        elif isinstance(op, dj.AlterOrderWithRespectTo):
            yield f"{where}: old processes insert rows without the order. Add a column of your own."
        elif "Concurrently" in _bases(op) and getattr(migration, "atomic", True):
            yield f"{where}: it cannot run in a transaction. Say atomic = False."
        elif name == "AddConstraint":
            yield f"{where}: every row is checked under a lock. Add it NOT VALID, validate later."
        elif isinstance(op, dj.AlterField):
            yield f"{where}: it may rewrite the table, or read all of it under a lock."
        elif isinstance(op, dj.AddField):
            yield from _added(op, where)
        elif HARMLESS.isdisjoint(_bases(op).split()):
            yield f"{where}: what it locks is not known here."
    if schema and data and getattr(migration, "atomic", True):
        yield "It changes tables and rows in one transaction, which holds its locks meanwhile."


def _added(op: object, where: str) -> Iterator[str]:
    from django.db import models
    from django.db.models.functions import Now

    field: models.Field = op.field  # type: ignore[attr-defined,type-arg]
    if isinstance(field, models.ManyToManyField) or field.null or field.has_db_default():
        pass
    else:
        yield f"{where}: old processes insert rows without it. Give it a db_default, or null."
    default = getattr(field, "_db_default_expression", None) if field.has_db_default() else None
    if not isinstance(default, models.Value | Now | None):
        yield f"{where}: a default that differs from row to row rewrites the table. Fill it behind."
    if isinstance(field, models.GeneratedField | models.AutoField):
        yield f"{where}: each row gets a value of its own, so the table is rewritten."
    if field.remote_field and getattr(field, "db_constraint", True) and not field.many_to_many:
        yield f"{where}: a foreign key locks both tables while it is added. db_constraint=False."
    if field.unique or (field.db_index and not field.remote_field):
        yield f"{where}: its index is built while writers wait. Add the index apart."


def _is_of(code: Callable[..., object], makers: Iterable[Callable[..., object]]) -> bool:
    """Whether it was written inside of one of them."""
    inside = {f"{maker.__module__}.{maker.__qualname__}.<locals>" for maker in makers}
    return f"{code.__module__}.{code.__qualname__}".rpartition(".")[0] in inside


def _flat(operations: list[object]) -> Iterator[object]:
    from django.db import migrations as dj

    for op in operations:
        if isinstance(op, dj.SeparateDatabaseAndState):
            yield from _flat(list(op.database_operations))
        else:
            yield op


def _bases(op: object) -> str:
    return " ".join(base.__name__ for base in type(op).__mro__)


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gateway_project.settings")
    import django

    django.setup()
    every = list(findings())
    problems = [(name, sentence) for name, sentence in every if name not in KNOWN]
    for name, sentence in problems:
        print(f"{name}: {sentence}")
    stale = KNOWN.keys() - {name for name, _ in every}
    for name in sorted(stale):
        print(f"{name}: deploy/migrations.py excuses it, and nothing is wrong with it.")
    if problems:
        print("docs/migrations.md says what to do instead; KNOWN in deploy/migrations.py excuses.")
    return 1 if problems or stale else 0


if __name__ == "__main__":
    sys.exit(main())
