"""The worker's side of the Redis stream: from entries to rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

from django.db import connection

from accounts.usage.log import write
from accounts.usage.rows import Batch
from gateway_project.core.stores import redis
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import usage_dropped

STREAM = "gw:usage"
ENTRIES_AT_ONCE = 100
DRAIN_LOCK = 163_990_420_092_417_732  # any number that nobody else on the database uses
log = get_logger("gateway.usage")


def drain() -> int:
    """Write what waits in the Redis stream; returns the rows stored.

    One drain runs at a time in the whole installation. An entry is deleted once its rows are
    committed: a worker that dies in between writes it again, which `write` notices.
    """
    client = redis.client()
    stored = 0
    with _only_drain() as is_ours:
        while is_ours:
            entries = client.xrange(STREAM, count=ENTRIES_AT_ONCE)
            stored += write(list(_batches(entries)))
            if entries:
                client.xdel(STREAM, *(entry_id for entry_id, _ in entries))
            if len(entries) < ENTRIES_AT_ONCE:
                break
    return stored


def _batches(entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> Iterator[Batch]:
    for entry_id, fields in entries:
        try:
            yield Batch.unpacked(UUID(fields[b"id"].decode()), fields[b"rows"])
        except (ValueError, KeyError, TypeError) as exc:
            log.error("usage_entry_unreadable", entry=entry_id.decode(), error=type(exc).__name__)
            usage_dropped.inc()


@contextmanager
def _only_drain() -> Iterator[bool]:
    if connection.vendor != "postgresql":
        yield True  # its transactions exclude each other anyway
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [DRAIN_LOCK])
        row = cursor.fetchone()
    is_ours = bool(row and row[0])
    try:
        yield is_ours
    finally:
        if is_ours:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [DRAIN_LOCK])
