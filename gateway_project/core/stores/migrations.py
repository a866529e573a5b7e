"""Whether the database has all the migrations of this code.

Looked at once when a process starts, and again by readiness for as long as some are missing (or the
database could not be asked). Migrations of a newer version are none of our business: during a
rolling upgrade the old code serves on beside the migrated database.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache

from django import db
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger

COMMAND = ".venv/bin/python manage.py migrate"
LOOK_SECONDS_MAX = 5.0
log = get_logger("gateway.migrations")

Name = tuple[str, str]
missing: list[Name] | None = None
"""What is known of this process' database; None: it was never asked."""


@lru_cache(maxsize=1)
def _of_this_code() -> dict[Name, tuple[Name, ...]]:
    """Each migration with those that it replaces."""
    found = MigrationLoader(None, ignore_no_migrations=True).disk_migrations
    return {name: tuple(migration.replaces) for name, migration in found.items()}


def find_missing() -> list[Name]:
    """Ask the database, in one or two queries. Raises what Django raises when it is away."""
    applied = set(MigrationRecorder(db.connection).applied_migrations())
    return sorted(
        name
        for name, replaced in _of_this_code().items()
        if name not in applied and not (replaced and applied.issuperset(replaced))
    )


def trouble() -> str:
    """What stands in the way of serving, and what to do; empty when nothing does."""
    if missing is None:
        return "This process has not seen its database yet. Check DATABASE_URL."
    return sentence(missing) if missing else ""


def sentence(names: list[Name]) -> str:
    """What is missing, and what to do."""
    app, name = names[0]
    count = f"{len(names)} migrations" if len(names) > 1 else "One migration"
    return f"{count} of this version did not run in the database ({app}.{name}). Run: {COMMAND}"


async def look() -> None:
    """Find out once; later calls ask only while some are missing, and log what changed."""
    global missing
    if missing == []:
        return
    before = missing
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX):
            missing = await database.run_behind(find_missing)
    except (db.Error, TimeoutError) as exc:
        log.error(
            "database_unavailable",
            error=repr(exc),
            do="Check DATABASE_URL, and that the database answers. Not ready until then.",
        )
        return
    if missing and missing != before:
        log.error("migrations_missing", count=len(missing), do=sentence(missing))
    elif before and not missing:
        log.info("migrations_complete")
