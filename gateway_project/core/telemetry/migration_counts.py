"""`django_migrations_applied_total` and `…_unapplied_total`: looked at once, as a process starts.

django-prometheus would look as Django is set up, for each command and before the database is
known to be there. Whoever looked last is right for all: one series, not one for each process.
"""

from __future__ import annotations

import asyncio

from django import db
from django_prometheus.migrations import (
    ExportMigrations,
    applied_migrations,
    unapplied_migrations,
)

from gateway_project.core import errors
from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger

RETRY_SECONDS = 30.0
log = get_logger("gateway.metrics")
for _gauge in (applied_migrations, unapplied_migrations):  # before anybody sets them
    _gauge._kwargs["multiprocess_mode"] = _gauge._multiprocess_mode = "mostrecent"


async def export() -> None:
    """Count them where nobody waits for it; insist while the database is away."""
    while True:
        try:
            await database.run_behind(ExportMigrations)
        except (db.Error, errors.StoreUnavailable) as exc:
            log.warning("migrations_not_counted", error=type(exc).__name__)
            await asyncio.sleep(RETRY_SECONDS)
        else:
            log.info("migrations_counted")
            return
