"""`manage.py migrate`: Django's, beside the traffic: it waits for locks only a little while.

A statement that waits for a lock makes everybody behind it wait, readers among them. So each
migration's transaction gives up after `MIGRATION_LOCK_SECONDS`, undone, and is tried again. What
cannot run in a transaction (`CREATE INDEX CONCURRENTLY`) waits without keeping anybody.
"""

from __future__ import annotations

from time import sleep
from typing import Any

from django import db
from django.conf import settings
from django.core.management.base import CommandError
from django.core.management.commands import migrate

from gateway_project.core.stores import statements
from gateway_project.core.stores.statements import Bounds

TRIES = 10
PAUSE_SECONDS = 3.0
LOCK_NOT_AVAILABLE = "55P03"


class Command(migrate.Command):
    def handle(self, *args: Any, **options: Any) -> None:
        connection = db.connections[options["database"]]
        if connection.vendor != "postgresql":
            super().handle(*args, **options)
            return
        # Before the bounds: they are for transactions, not for all that the connection does.
        connection.ensure_connection()
        for left in reversed(range(TRIES)):
            try:
                with statements.bounded(Bounds(0, settings.MIGRATION_LOCK_SECONDS, 0)):
                    super().handle(*args, **options)
                return
            except db.OperationalError as exc:
                if getattr(exc.__cause__, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                    raise
                notice = (
                    f"Somebody held a lock for {settings.MIGRATION_LOCK_SECONDS:g} s that this "
                    "migration needs; it was undone, and nothing else is changed."
                )
                if not left:
                    raise CommandError(
                        f"{notice} Run it again when it is quieter, or see in pg_stat_activity who "
                        "has the oldest xact_start."
                    ) from None
                self.stderr.write(f"{notice} Trying again ({left} more).")
                sleep(PAUSE_SECONDS)
